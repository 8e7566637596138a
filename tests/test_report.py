"""The report over synthetic run folders: what it says, what it escapes, what it survives."""

import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from reports import (
    HOSTILE,
    PERSONA,
    SETTINGS,
    UNKNOWN,
    answers,
    fill,
    folded,
    harvest,
    heal_log,
    put,
    reading,
    run_record,
    starved,
)
from steerheal import numbers, store
from steerheal.errors import UserError
from steerheal.personas import find
from steerheal.report import figures, page, plates
from steerheal.report.headline import headline_parts


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = fill(tmp_path_factory.mktemp("healthy"), run_record())
    return folder, page.write_report(folder).read_text(encoding="utf-8")


def write(folder: Path) -> str:
    return page.write_report(folder).read_text(encoding="utf-8")


@pytest.mark.long
def test_a_healthy_run_says_what_its_best_round_did(healthy: tuple[Path, str]) -> None:
    said = page.headline(run_record())
    assert said == (
        "Round 3 healed: love +0.15 nats/token [0.12, 0.18] over the base without any hook at a KL "
        "of 0.6 nats/token, on the evaluation prompts, which also choose the round, no "
        "unsteered control was trained, so that what training alone does is unknown, its target "
        "foundation care +0.15 nats [0.12, 0.18] (up, as intended), canary mass 0.974 of the base; "
        "the trait moved beyond its interval. Damage guard: "
        "perplexity of plain prose not read, top-1 of the vignettes 0.6 → 0.6, share of “not "
        "wrong” not read, "
        "off-target authority +0.6 nats [0.57, 0.63]."
    )
    assert all(part in healthy[1] for part in headline_parts(run_record()))
    assert healthy[1].count("✓</b>") == 3
    assert "8 of 8 prompts differ" in healthy[1]


def test_every_figure_is_there_in_both_formats(healthy: tuple[Path, str]) -> None:
    names = sorted(path.name for path in (healthy[0] / "figures").iterdir())
    expected = [f"{plate.name}.{kind}" for plate in plates.PLATES for kind in ("png", "svg")]
    assert names == sorted(expected)
    assert len(re.findall(r'<svg [^>]*role="img"', healthy[1])) == len(plates.PLATES)


def test_the_page_loads_nothing_from_elsewhere(healthy: tuple[Path, str]) -> None:
    for target in re.findall(r'(?:src|href|action|xlink:href)="([^"]*)"', healthy[1]):
        assert target.startswith("#")
    assert "<script" not in healthy[1]
    assert set(re.findall(r"url\((.)", healthy[1])) == {"#"}
    assert "@import" not in healthy[1]


def test_sections_come_in_order(healthy: tuple[Path, str]) -> None:
    sections = [
        "run",
        "rounds",
        "figures",
        "diary",
        "filter",
        "foundations",
        "guard",
        "configuration",
    ]
    assert re.findall(r'<section id="(\w+)">', healthy[1]) == sections
    assert "steerheal run --persona love --rounds 3" in healthy[1]
    assert "&#34;coherence_floor&#34;: 0.95" in healthy[1]


@pytest.mark.long
@pytest.mark.drawn
def test_the_same_record_gives_the_same_bytes(healthy: tuple[Path, str], tmp_path: Path) -> None:
    again = fill(tmp_path, run_record())
    assert write(again) == healthy[1]
    for path in (healthy[0] / "figures").iterdir():
        assert path.read_bytes() == (again / "figures" / path.name).read_bytes()


def test_borderline_samples_follow_the_rule(healthy: tuple[Path, str]) -> None:
    shown = re.findall(r"drawn number (\d+)", healthy[1])
    assert shown[:6] == ["5", "4", "3", "6", "7", "8"]


@pytest.mark.long
def test_a_run_starved_in_its_first_round_says_so_first(tmp_path: Path) -> None:
    record = run_record(rounds=(starved(0),), best=None, outcome="starved in round 1")
    said = page.headline(record)
    assert said.startswith("Round 1 starved: the filter kept 3 of 96 completions down to a dose of")
    assert "a round needs 16" in said
    text = write(fill(tmp_path, record))
    assert "Round 1 has no steered or healed reading. Round 1 starved" in text
    assert "is not drawn: no round was healed." in text
    assert [condition.holds for condition in page.conditions(record, None)] == [None] * 3
    assert not (tmp_path / "figures" / "heal.svg").exists()
    assert (tmp_path / "figures" / "trajectory.svg").exists()


def test_an_interrupted_run_with_nothing_evaluated_is_readable(tmp_path: Path) -> None:
    record = run_record(
        status="interrupted", outcome="Ctrl-C", base=None, rounds=(), best=None, stages=()
    )
    text = write(fill(tmp_path, record))
    assert "The run was interrupted: Ctrl-C. No state was evaluated, not even the base." in text
    assert "The base was not evaluated: the run was interrupted." in text
    assert "Missing: no stage was finished." in text
    assert not (tmp_path / "figures").exists()


@pytest.mark.slow
def test_a_failed_run_shows_its_error_and_what_it_finished(tmp_path: Path) -> None:
    half = folded(1).model_copy(update={"healed": None, "heal": None, "kl_cumulative": math.nan})
    record = run_record(status="failed", error="boom\nat line 3", rounds=(folded(0), half), best=0)
    fill(tmp_path, record)
    store.write_record(tmp_path / "round-02/heal.json", heal_log(1))
    (tmp_path / "base/shown.json").unlink()
    text = write(tmp_path)
    assert "The run failed: boom. Round 1 healed: love +0.05" in text
    assert '<pre class="wrap">boom\nat line 3</pre>' in text
    assert "Round 2 has no healed reading. The run failed before it was evaluated." in text
    assert "Missing: base: Cannot read base/shown.json: No such file or directory." in text
    assert "2.1 → 1.8 → 1.75" in text


def test_a_trait_that_did_not_move_is_said_first() -> None:
    flat = folded(0).healed
    assert flat is not None
    weak = put(flat, gain=reading(0.01), coherence=0.8)
    record = run_record(rounds=(folded(0).model_copy(update={"healed": weak}),), best=0)
    said = page.headline(record)
    assert said.startswith(
        "The trait is not shown to have moved: its interval includes 0, and coherence fell below "
        f"0.95 of the base. Round 1 healed: love +0.01 nats/token [{numbers.MINUS}0.02, 0.04]"
    )
    assert "moved beyond" not in said
    holds = [condition.holds for condition in page.conditions(record, (0, 8))]
    assert holds == [False, False, False]


def test_a_trait_that_moved_backwards_is_said_first() -> None:
    healed = folded(0).healed
    assert healed is not None
    back = put(healed, gain=reading(-0.1))
    record = run_record(rounds=(folded(0).model_copy(update={"healed": back}),), best=0)
    assert page.headline(record).startswith("The trait moved the wrong way. Round 1 healed: love")


@pytest.mark.long
def test_unknown_readings_are_dashes_with_their_reason(tmp_path: Path) -> None:
    blank: dict[str, Any] = {
        "trait": UNKNOWN,
        "gain": UNKNOWN,
        "mass": UNKNOWN,
        "kl": UNKNOWN,
        "cost": UNKNOWN,
        "coherence": math.nan,
        "perplexity": math.inf,
        "nats": {},
        "delta_nats": {},
        "surgical": None,
    }
    full = folded(0)
    assert full.healed is not None and full.steered is not None
    row = full.model_copy(
        update={
            "healed": put(full.healed, **blank),
            "steered": put(full.steered, **blank),
            "retain": UNKNOWN,
            "direction_cosine": math.nan,
            "kl_cumulative": math.inf,
        }
    )
    record = run_record(rounds=(row,), best=0)
    assert "The trait could not be read (the base writes nothing)" in page.headline(record)
    assert [item.holds for item in page.conditions(record, None)] == [None] * 3
    text = write(fill(tmp_path, record))
    noted = re.findall(rf'<span>{numbers.UNKNOWN}<sup><a href="#(note-[\d-]+)">', text)
    told = [re.search(rf'<li id="{note}">(.*?)</li>', text) for note in noted]
    assert [note and note[1] for note in told].count("the base writes nothing") >= 4
    assert "nan" not in re.sub(r"<style>.*?</style>|<svg .*?</svg>", "", text, flags=re.S).lower()


@pytest.mark.long
def test_hostile_text_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    row = folded(0).model_copy(update={"reasons": {HOSTILE: 3}})
    persona = {**PERSONA, "name": HOSTILE, "positive": HOSTILE, "title": HOSTILE}
    record = run_record(
        name=HOSTILE,
        status="failed",
        outcome=HOSTILE,
        error=HOSTILE,
        command=HOSTILE,
        notes=(HOSTILE,),
        environment={HOSTILE: HOSTILE},
        persona={**persona, "axis": {"foundation": HOSTILE}},
        config={**SETTINGS, "note": HOSTILE},
        rounds=(row,),
        best=0,
    )
    folder = fill(tmp_path, record, text=HOSTILE)
    (store.round_folder(folder, 0) / "completions.jsonl").unlink()
    text = write(folder)
    assert "<script" not in text
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt; ␛[31mred␛[0m ␀ \N{REPLACEMENT CHARACTER}gnp" in text
    )
    assert "{{ 7*7 }}" in text
    assert not set(text) & {chr(code) for code in (*range(9), *range(11, 32), 127, 0x202E)}
    assert "\x1b" not in page.headline(record)


@pytest.mark.long
def test_states_on_one_spot_are_drawn_without_a_warning() -> None:
    same = folded(0).model_copy(update={"steered": run_record().base, "healed": run_record().base})
    record = run_record(rounds=(same,) * 1, best=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for plate in plates.PLATES:
            page.draw.svg(plate.draw(record), plate.name)


def test_a_text_that_equals_the_base_is_counted(tmp_path: Path) -> None:
    folder = fill(tmp_path, run_record())
    store.write_record(folder / "round-03/shown-healed.json", answers("healed", "An answer"))
    assert page.shown_differs(folder, run_record()) == (0, 8)
    (folder / "round-03/shown-healed.json").unlink()
    assert page.shown_differs(folder, run_record()) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0912, "0.0912"),
        (-2.3541, f"{numbers.MINUS}2.35"),
        (math.nan, numbers.UNKNOWN),
        (math.inf, "∞"),
        (12345.0, "12,300"),
        (999.7, "1,000"),
        (-0.0, "0"),
        (1e9, "1e+09"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert numbers.number(value) == text


def test_a_harvest_of_a_round_that_was_never_recorded_is_read(tmp_path: Path) -> None:
    record = run_record(status="interrupted", rounds=(), best=None)
    fill(tmp_path, record)
    store.write_harvest(tmp_path / "round-01", harvest())
    (only,) = page.samples.filtered(tmp_path, record)
    assert only.title == "Round 1 (unfinished)"
    assert len(only.samples) == 2 * page.samples.BORDERLINE


def test_a_reversed_persona_is_named_so() -> None:
    persona = find("love", reverse=True).model_dump(mode="json")
    record = run_record(config={**SETTINGS, "reverse": True}, persona=persona)
    assert "love-reversed +0.15" in page.headline(record)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        page.write_report(tmp_path)


def test_the_guard_stands_on_the_page_for_every_state(healthy: tuple[Path, str]) -> None:
    _, text = healthy
    assert 'id="guard"' in text
    assert "perplexity of plain prose" in text


def test_a_heal_without_a_barrier_is_drawn_without_one() -> None:
    row = folded(0)
    assert row.heal is not None
    steps = tuple(step.model_copy(update={"divergence": math.nan}) for step in row.heal.steps)
    plain = row.model_copy(update={"heal": row.heal.model_copy(update={"steps": steps})})
    panels = [len(figures.heal(run_record(rounds=(item,))).axes) for item in (row, plain)]
    assert panels == [4, 1]
