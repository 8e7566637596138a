"""What is typed: every option of every command has bounds, and its mistakes are one clear line."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import torch
from annotated_types import Gt, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from steerheal.bounds import MOST_ROUNDS, MOST_SEED, allowed, folder_name
from steerheal.cli import KINDS, main, parse
from steerheal.config import PRESETS, RunConfig, read_toml, resolve
from steerheal.config.comparing import ArmsFile
from steerheal.config.sweeping import SweepFile
from steerheal.config.validation import OWN_NAMES
from steerheal.errors import UserError
from steerheal.line import Option, flag_of, options, read
from steerheal.personas import Persona, find

import tiny

NEEDED = {
    "sample": ["RUN"],
    "chat": ["RUN"],
    "ui": ["RUN"],
    "report": ["RUN"],
    "paper": ["RUN"],
    "export": ["RUN"],
    "seeds": ["A", "B"],
    "sweep": ["FILE"],
}


def bounds_of(annotation: Any, metadata: tuple[Any, ...] = ()) -> tuple[type, list[Any]] | None:
    """The number type of a field and everything that bounds it; None: no number."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return bounds_of(inner, (*metadata, *more))
    if get_origin(annotation) is tuple:
        return bounds_of(get_args(annotation)[0], metadata)
    flat = [part for m in metadata for part in (m.metadata if isinstance(m, FieldInfo) else [m])]
    return (annotation, flat) if annotation in (int, float) else None


def numeric() -> Iterator[tuple[str, Option, type, float, float]]:
    """Every option that takes numbers, with a value below its bounds and one above."""
    for name, kind in KINDS.items():
        for option in options(kind):
            found = bounds_of(option.field.annotation, tuple(option.field.metadata))
            if found is None:
                continue
            number, marks = found
            # Bounds of an outer type narrow those of the inner one.
            low = max(
                v for m in marks if (v := getattr(m, "ge", getattr(m, "gt", None))) is not None
            )
            high = min(
                v for m in marks if (v := getattr(m, "le", getattr(m, "lt", None))) is not None
            )
            open_low = any(isinstance(m, Gt) and m.gt == low for m in marks)
            open_high = any(isinstance(m, Lt) and m.lt == high for m in marks)
            step = 1 if number is int else 1e-3
            yield (
                name,
                option,
                number,
                low if open_low else low - step,
                (high if open_high else high + (step if number is int else abs(high) * 1e-3)),
            )


NUMERIC = list(numeric())


def said(name: str, words: list[str]) -> str:
    with pytest.raises(UserError) as found:
        parse(name, [*NEEDED.get(name, []), *words])
    text = str(found.value)
    assert "\n" not in text and "http" not in text and "pydantic" not in text
    return text


def test_every_number_on_every_line_is_found() -> None:
    assert len(NUMERIC) >= 70
    words = {"run", "compare", "sweep", "tune", "evaluate", "rank", "scan", "sample", "chat", "ui"}
    assert {name for name, *_ in NUMERIC} == words | {"export"}


@pytest.mark.parametrize(
    ("name", "option", "number", "below", "above"),
    NUMERIC,
    ids=[f"{name} {option.flags[-1]}" for name, option, *_ in NUMERIC],
)
def test_a_number_out_of_bounds_is_one_line_with_option_value_and_what_is_allowed(
    name: str, option: Option, number: type, below: float, above: float
) -> None:
    wrong = [
        str(below),
        str(above),
        "much",
        "",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "9" * 24,
        "9" * 5000,
    ]
    wrong += ["1.5"] if number is int else []
    for value in wrong:
        words = [value] * (option.most if option.most < 5 else 1)
        for flag in option.flags:
            text = said(name, [flag, *words])
            assert text.startswith(option.flags[0] + ":"), text
            assert (value or "nothing")[:50] in text
            assert allowed(option.field.annotation, tuple(option.field.metadata)) in text
            assert len(text) < 250


@pytest.mark.parametrize("name", KINDS)
def test_an_option_without_its_value_says_which(name: str) -> None:
    for option in options(KINDS[name]):
        if option.exact and not option.off and not option.positional:
            assert said(name, [option.flags[0]]).startswith(f"{option.flags[0]} needs ")
            assert "needs" in said(name, [option.flags[0], "--next"])


def test_an_unknown_option_gets_the_nearest_names() -> None:
    assert "Perhaps you meant --heal.lam " in said("run", ["--heal.lamm", "1"])
    assert "Perhaps you meant --heal.rank." in said("run", ["--rank", "4"])
    assert "Perhaps you meant --tokens or" in said("sample", ["--token", "4"])
    assert "Unknown option -x." in said("report", ["-x"])
    assert "Perhaps you meant --heal.rank" in said("run", ["--HEAL.RANK", "4"])
    assert "--help heal shows" in said("run", ["--heal", "4"])
    assert "PERSONA is given without one" in said("run", ["--persona", "love"])
    assert "--heal.rank needs a value" in said("run", ["--heal.rank=--"])
    assert "take no value" in said("run", ["--no-reverse=1"])


def test_an_option_that_takes_one_value_is_refused_twice_and_a_list_goes_on() -> None:
    assert said("run", ["--seed", "1", "--seed", "2"]) == "--seed is given twice. Give it once."
    assert "twice" in said("run", ["--reverse", "--no-reverse"])
    options = parse("sample", ["RUN", "--prompt", "a", "b", "--prompt", "c"])
    assert options.model_dump()["prompt"] == ("a", "b", "c")


def test_words_go_where_they_belong() -> None:
    found = parse(
        "run", ["--heal.lam_power=-1e-1", "--dose.sweep", "0.5", "1", "--reverse", "care"]
    )
    values = found.model_dump()
    assert values["persona"] == "care" and values["settings"]["reverse"] is True
    assert values["settings"]["heal"]["lam_power"] == -0.1
    assert values["settings"]["dose"]["sweep"] == (0.5, 1.0)
    assert read(KINDS["sample"], ["--", "--odd"]).values == {"run": "--odd"}
    assert "'two'" in said("report", ["two"])


def test_a_line_overrides_the_file_and_the_file_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("rounds = 7\n[heal]\nrank = 3\n")
    found = parse("run", ["--preset", "quick", "--config", str(file), "--heal.rank", "5"])
    settings = found.model_dump()["settings"]
    assert (settings["rounds"], settings["heal"]["rank"]) == (7, 5)
    assert settings["vector"]["contexts"] == PRESETS["quick"]["vector"]["contexts"]


def test_the_largest_seed_seeds_every_draw() -> None:
    last = (MOST_SEED * 1_009 + MOST_ROUNDS) * 1_000_003 + 1_000_000
    torch.Generator().manual_seed(last)
    with pytest.raises((RuntimeError, ValueError, OverflowError)):
        torch.Generator().manual_seed(last * 10)


@pytest.mark.parametrize(
    "name",
    ["a" * 101, "é" * 51, "a/b", "a\\b", ".", "..", ".stages", "-x", "a\tb", "a\x00", "CON",
     "nul.txt", "a:b", "x.", " x", "\u202ex"],
)  # fmt: skip
def test_a_name_that_makes_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must|is a name"):
        folder_name(name)
    assert said("run", [f"--name={name}"]).startswith("--name: ")


def test_names_that_make_a_folder_are_taken() -> None:
    for name in ("love", "love-2", "Liebe für alle", "愛", "v1.5", "a" * 100):
        assert folder_name(name) == name


def test_paths_that_no_system_takes_are_refused() -> None:
    long = "a" * 300
    for words in (
        ["--runs", long],
        [long],
        ["--measure.protocol", long],
    ):
        assert "at most 255 bytes" in said("run", words)
    assert "empty path" in said("run", ["--runs", ""])
    assert "at most 255 bytes" in said("evaluate", ["--json", long])


@pytest.mark.parametrize("table", ["", "heal", "dose"])
def test_numbers_in_a_file_are_no_booleans_nor_infinite(table: str, tmp_path: Path) -> None:
    setting = {"": "rounds", "heal": "lam", "dose": "start"}[table]
    for value in ("true", "inf", "nan", "-inf", "'x'", "[1]", "{a = 1}"):
        file = tmp_path / "a.toml"
        file.write_text((f"[{table}]\n" if table else "") + f"{setting} = {value}\n")
        with pytest.raises(UserError, match=rf"{setting}: "):
            resolve("standard", file)


def test_settings_from_python_have_the_same_bounds() -> None:
    for wrong in (
        {"seed": 10**24}, {"rounds": 10**20}, {"heal": {"rank": 100_000}}, {"gate": float("inf")},
        {"sampling": {"tokens": 10**9}}, {"sampling": {"rows": 10**9}},
        {"dose": {"sweep": [1.0] * 10**6}}, {"vector": {"contexts": 10**9}},
        {"measure": {"long_prompts": 17}},
        {"measure": {"json_prompts": 13}}, {"heal": {"targets": ["x" * 1000]}},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            RunConfig.model_validate(wrong)


def test_a_file_with_a_byte_order_mark_and_windows_line_ends_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"\xef\xbb\xbfrounds = 3\r\n[heal]\r\nrank = 2\r\n")
    assert resolve("standard", file).heal.rank == 2
    calm = Path(__file__).parents[1] / "examples" / "calm.toml"
    text = calm.read_text(encoding="utf-8").replace("\n", "\r\n")
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert find(str(file)) == find(str(calm))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = '" + b"x" * 9_000_000 + b"'", "more than 8,000,000 bytes"),
        (b"a = '\xff'", "not UTF-8 text (byte 5)"),
        (b"a = 1e", "not valid TOML"),
    ],
)
def test_a_monstrous_file_is_one_clear_message(
    content: bytes, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(expected)):
        read_toml(file, RunConfig)


EXAMPLES = Path(__file__).parents[1] / "examples"
FILES: dict[str, type[BaseModel]] = {
    "calm": Persona, "quick": RunConfig, "arms": ArmsFile, "sweep": SweepFile,
}  # fmt: skip
TOLD = {"calm": "a persona", "quick": "a file of settings", "arms": "a file of arms",
        "sweep": "a sweep"}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("other", FILES)
def test_a_file_of_another_kind_says_what_it_is(name: str, other: str) -> None:
    file = EXAMPLES / f"{name}.toml"
    if name == other:
        assert read_toml(file, FILES[other])
    else:
        with pytest.raises(UserError, match=f"{name}.toml is {TOLD[name]}, which"):
            read_toml(file, FILES[other])


@pytest.mark.parametrize("name", OWN_NAMES)
def test_a_name_that_tells_a_kind_of_file_is_of_that_kind_alone(name: str) -> None:
    assert sum(name in kind.model_fields for kind in FILES.values()) == 1


def test_a_file_without_end_or_no_file_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than"):
        read_toml(Path("/dev/zero"), RunConfig)
    with pytest.raises(UserError, match="directory"):
        read_toml(tmp_path, RunConfig)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"positive": "You are  COLD!\u200b"}, "poles positive and negative are equal"),
        ({"positive": "x" * 60_000}, "at most 8,000"),
        ({"name": "../x"}, "one folder name"),
        ({"prompts": ("a", "a")}, "twice in train"),
        ({"prompts": ("Evaluate  0",)}, "in both train and evaluate"),
        ({"prompts": ("",)}, "at least 1"),
        ({"prompts": ("a" * 9_000,)}, "at most 8,000"),
    ],
)
def test_a_persona_whose_texts_do_not_do_is_refused(change: dict[str, Any], expected: str) -> None:
    values = tiny.persona().model_dump()
    if "prompts" in change:
        values["prompts"]["train"] = change["prompts"]
    else:
        values |= change
    with pytest.raises(ValidationError) as found:
        type(tiny.persona()).model_validate(values)
    assert expected.replace(",", "") in str(found.value).replace(",", "")


def test_the_name_of_a_setting_on_the_line_is_that_of_its_option() -> None:
    run: type[BaseModel] = KINDS["run"]
    assert flag_of(run, ("settings", "heal", "lam_power")) == "--heal.lam-power"
    assert flag_of(run, ("settings", "dose", "sweep", 1)) == "--dose.sweep"
    assert flag_of(run, ("settings", "model", "name")) == "--model"


def test_short_help_is_a_screen_and_the_long_one_holds_every_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["run", "--help"])
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 80
    main(["run", "--help-all"])
    whole = capsys.readouterr().out
    known = options(KINDS["run"])
    assert all(flag in whole for option in known for flag in option.flags if flag.startswith("-"))
    main(["run", "--help", "heal"])
    heal = capsys.readouterr().out
    assert "--heal.rank" in heal and "--dose.sweep" not in heal
    for text in (short, whole, heal):
        assert "{None}" not in text
    main(["run", "--preset", "quick", "--help", "vector"])
    assert "(default: 48)" in capsys.readouterr().out
    assert "Perhaps you meant 'heal'" in _failing(["run", "--help", "heel"], capsys)


@pytest.mark.parametrize("name", KINDS)
def test_help_reads_naturally(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([name, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: steerheal {name} ")
    assert "None" not in text.replace("None is the default", "") and "[{" not in text


def _failing(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())
