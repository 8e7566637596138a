"""A finished record as a paper: numbers are inserted, no text is markup, all or nothing."""

import json
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import reports
from steerheal import store
from steerheal.cli import main
from steerheal.config import RunConfig
from steerheal.config.comparing import ArmSettings, CompareSettings
from steerheal.disk import MAKING
from steerheal.errors import UserError
from steerheal.records import Admission, Reading, RunRecord
from steerheal.records.comparing import ArmRecord, CompareRecord, Contrast, Place
from steerheal.records.paper import PaperRecord
from steerheal.report import plates
from steerheal.report.frontier import contrasts
from steerheal.report.paper import compare, run
from steerheal.report.paper.content import told
from steerheal.report.paper.escape import inline, latex, markdown, preamble
from steerheal.report.paper.prose import as_latex, as_markdown, bibliography, cite, sources
from steerheal.report.paper.write import RECORD, write_paper
from steerheal.tables import ARM_KINDS, BARRIERS, INSTRUMENTS, METHODS, OBJECTIVES, TEACHERS

HOSTILE = (
    "- [x](http://evil) ![i](j) <b>&amp; $\\frac{1$ \\input{/etc/passwd} 100% #1 a_b^c~d `q` @key "
    "{{< include secret >}} | [^1] *s* -- :: \x1b[31m\u202e\n\n# head\n\\\\[2em] ]{.c}"
)
COMPARED = {"seeds": 2, "ours": "anchor", "against": "prompt"}


def arm(name: str, kind: str, along: str = "", says: str = "what it is", **more: Any) -> ArmRecord:
    at = reports.reading(0.2)
    place = Place(at=1.0, trait=at, damage=reports.reading(0.01), kl=at, eta=at)
    settings = ArmSettings.model_construct(
        name=name, kind=kind, says=says, points=(), system=None, settings=more.pop("settings", {})
    )
    return ArmRecord.model_construct(
        arm=settings, says=says, along=along, family="base" if kind == "base" else "weights",
        points=(), curve=(place,),
        spent=(), unmade={}, shown=(), **more,
    )  # fmt: skip


def contrast(name: str, where: Any, value: float, p: float) -> Contrast:
    read = Reading(value=value, low=value - 0.1, high=value + 0.1, n=2)
    return Contrast(arm=name, ours="anchor", at=where, reading=read, p=p, adjusted=p)


def comparison(better: float = 0.3, p: float = 0.6, **changes: Any) -> CompareRecord:
    values: dict[str, Any] = {
        "status": "finished",
        "name": "compare-love",
        "command": "steerheal compare love",
        "settings": CompareSettings(**COMPARED),
        "config": RunConfig(),
        "persona": reports.PERSONA,
        "environment": {"model": "tiny", "torch": "2.9"},
        "instrument": "likelihood",
        "arms": (
            arm("base", "base"),
            arm("prompt", "prompt"),
            arm("anchor", "trained", "gate", settings={"heal": {"anchor": 3.0}}),
        ),
        "contrasts": (contrast("prompt", "damage", better, p), contrast("prompt", "KL", better, p)),
        "compared": 2,
    }
    return CompareRecord.model_construct(**{**values, **changes}, **{
        name: field.default for name, field in CompareRecord.model_fields.items()
        if name not in values and name not in changes
    })  # fmt: skip


def body(folder: Path) -> str:
    return (folder / "paper.qmd").read_text().split("---\n", 2)[2]


def inserted(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "numbers.yml").read_text())


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's paper with one figure, and a comparison's; both with hostile texts."""
    folder = tmp_path_factory.mktemp("papers")
    persona = reports.PERSONA | {"title": HOSTILE, "positive": HOSTILE, "name": HOSTILE}
    ran = reports.run_record(persona=persona, notes=(HOSTILE,), environment={"model": HOSTILE})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "PLATES", plates.PLATES[-1:])
        write_paper(ran, folder / "run")
    arms = (arm("base", "base"), arm("prompt", "prompt", says=HOSTILE), arm("$_$ {", "trained"))
    write_paper(comparison(arms=arms, notes=(HOSTILE,), persona=persona), folder / "compare")
    return {name: folder / name for name in ("run", "compare")}


# ── what it holds ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["run", "compare"])
def test_every_number_is_inserted_and_everything_that_is_inserted_is_there(
    papers: dict[str, Path], name: str
) -> None:
    folder, text = papers[name], body(papers[name])
    for path in re.findall(r"{{< meta ([\w.]+) >}}", text):
        found: Any = inserted(folder)
        for part in path.split("."):
            found = found[part]
        assert isinstance(found, str) and found
    files = re.findall(r"{{< include ([\w./]+) >}}|\\input{([\w./]+)}", text)
    files += [(f"figures/{n}.{end}", "") for n in re.findall(r"\(figures/(\w+)\)", text)
              for end in ("pdf", "svg")]  # fmt: skip
    assert len(files) >= 8
    for pair in files:
        assert (folder / "".join(pair)).stat().st_size > 0
    rest = re.sub(r"{{<.*?>}}|{#.*?}|{width=.*?}|\$\$.*?\$\$", "", text, flags=re.DOTALL)
    assert not re.search(r"\d", rest), "a number that is not inserted"
    head = yaml.safe_load((folder / "paper.qmd").read_text().split("---\n")[1])
    assert head["metadata-files"] == ["numbers.yml"] and set(head["format"]) == {"html", "pdf"}
    assert (folder / head["bibliography"]).is_file()
    assert (folder / head["format"]["pdf"]["include-in-header"]).read_text() == preamble()
    assert inserted(folder)["title"] and inserted(folder)["abstract"]


@pytest.mark.parametrize("name", ["run", "compare"])
def test_what_is_cited_is_in_the_bibliography_and_nothing_else(
    papers: dict[str, Path], name: str
) -> None:
    text = (papers[name] / "introduction.md").read_text() + (papers[name] / "method.md").read_text()
    cited = set(re.findall(r"(?<!\\)@(\w+)", text))
    entries = re.findall(r"^@\w+{(\w+),", (papers[name] / "references.bib").read_text(), re.M)
    assert cited == set(entries) and len(entries) == len(cited) >= 5
    latexed = re.findall(r"\\citep{([\w,]+)}", (papers[name] / "method.tex").read_text())
    assert {key for group in latexed for key in group.split(",")} <= cited


def test_the_bibliography_follows_the_settings() -> None:
    def keys(**changes: Any) -> set[str]:
        record = reports.run_record(config=RunConfig.model_validate(changes))
        made = run.content(record).method
        return set(re.findall(r"^@\w+{(\w+),", bibliography(made), re.M))

    plain = keys()
    assert {"panickssery2023caa", "hu2021lora", "loshchilov2017adamw"} <= plain
    assert not plain & {"zou2023repe", "rafailov2023dpo", "meng2024pissa", "li2022contrastive"}
    other = keys(
        vector={"method": "pca"}, heal={"objective": "dpo", "adapter": "rslora"},
        teacher="plausible",
    )  # fmt: skip
    assert other - plain >= {"zou2023repe", "rafailov2023dpo", "kalajdzievski2023rslora"}
    assert "li2022contrastive" in other and "panickssery2023caa" not in other


def test_the_method_says_what_was_on() -> None:
    def said(**changes: Any) -> str:
        record = reports.run_record(config=RunConfig.model_validate(changes))
        return " ".join(map(as_latex, run.content(record).method))

    assert "no barrier and no anchor" in said()
    barred = said(heal={"barrier": "kl_rev", "lam": 0.7, "tau": 0.2, "anchor": 2.0})
    assert r"$\lambda$ = 0.7" in barred and "An anchor adds 2 times" in barred
    assert "no barrier" not in barred and "the student before the round" in barred
    assert "unrelated prompts, the token" not in barred
    aside = said(heal={"barrier": "kl_fwd", "barrier_text": "unrelated", "off_label": True})
    assert "answers to unrelated prompts, the token that stands there left out" in aside
    assert "starts at 1.25" in said(dose={"start": 1.25})
    prompted = said(teacher="prompt")
    assert "dose starts" not in prompted and "steering vector" not in prompted
    assert "linear layers in nf4" in said(model={"quantize": "nf4"})
    # Settings as another version wrote them are spoken of as far as they are there.
    assert "alpha –" in " ".join(map(as_latex, run.content(reports.run_record(
        config={"heal": {"rank": 4}, "unheard": 1})).method))  # fmt: skip


def test_the_method_of_a_comparison_says_who_judged() -> None:
    def said(**changes: Any) -> str:
        return " ".join(map(as_latex, compare.content(comparison(**changes)).method))

    assert "judged" not in said()
    judge = Admission(judge=HOSTILE, fingerprint="f", auc=0.76, replies=288)
    told = said(judge=judge)
    assert "AUC 0.76 within dose on 288" in told and "is shown without counting" in told
    assert HOSTILE not in told
    assert "counts" in said(judge=judge.model_copy(update={"auc": 0.85}))
    assert "judged" not in said(judge=judge, status="running")
    ran = run.content(reports.run_record(judge=judge)).method
    assert "AUC 0.76 within dose on 288" in " ".join(map(as_latex, ran))


def test_a_comparison_of_epochs_says_how_it_steers_and_where_it_does_not() -> None:
    longer = arm("longer", "epochs", "epochs")
    record = comparison(arms=(arm("base", "base"), longer))
    said = " ".join(map(as_latex, compare.content(record).method))
    assert "The steering vector is" in said and "Within an answer" not in said
    pushed = RunConfig.model_validate({"push": {"prompt": False, "kl_budget": 0.5}})
    said = " ".join(
        map(as_latex, compare.content(record.model_copy(update={"config": pushed})).method)
    )
    assert "the prompt is read without the vector, no token is more than 0.5 nats" in said


def test_sources_are_of_what_there_is_and_named_once() -> None:
    known = {
        *(f"method {name}" for name in METHODS),
        *(f"teacher {name}" for name in TEACHERS),
        *(f"objective {name}" for name in OBJECTIVES),
        *(f"barrier {name}" for name in BARRIERS),
        *(f"instrument {name}" for name in INSTRUMENTS),
        *(f"arm {name}" for name in ARM_KINDS),
        *(f"adapter {name}" for name in ("lora", "rslora", "pissa")),
        *(f"heal {name}" for name in ("adamw", "mask", "spectral", "on_policy")),
        *(f"library {name}" for name in ("torch", "transformers", "peft")),
        *(f"statistics {name}" for name in ("seeds", "holm", "shares", "ratios")),
        "reading foundations",
        "model embedded",
        "model nf4",
    }
    for source in sources():
        assert source.of <= known, source.of - known
        assert source.bibtex.count("{") == source.bibtex.count("}")
        assert source.key == source.bibtex.partition("{")[2].partition(",")[0]
        assert "title" in source.bibtex and "author" in source.bibtex
    assert len({source.key for source in sources()}) == len(sources())
    assert as_markdown(["a", cite("no such use"), "."]) == "a."


# ── what it says ────────────────────────────────────────────────────────────────────────────────


def test_wide_intervals_cannot_be_told_apart_and_signs_alone_decide() -> None:
    (entry,) = run.listed(["persona_logodds"])
    wide = told("a", "b", entry, Reading(value=0.2, low=-0.1, high=0.5))
    assert "cannot be told apart" in wide
    up = told("a", "b", entry, Reading(value=0.2, low=0.1, high=0.3))
    down = told("a", "b", entry, Reading(value=-0.2, low=-0.3, high=-0.1))
    assert up.endswith("a has more.") and down.endswith("b has more.")
    assert "unknown: no rows" in told("a", "b", entry, Reading.unknown("no rows"))
    assert "nothing can be told" in told("a", "b", entry, Reading(value=0.2))


def test_which_arm_wins_changes_names_and_numbers_alone() -> None:
    def shape(record: CompareRecord) -> list[str]:
        made = compare.content(record)
        texts = [made.abstract, *made.findings, *made.told, *made.limitations]
        return [re.sub(r"[−+-]?\d[\d.]*|prompt|anchor", "·", text) for text in texts]

    assert shape(comparison(0.3, 0.01))[0].count("has more") == 2
    ours, theirs = shape(comparison(-0.3, 0.01)), shape(comparison(0.3, 0.01))
    swapped = [text.replace("has less", "has more") for text in ours]
    assert swapped == theirs
    unclear = compare.content(comparison(0.3, 0.6))
    assert all("cannot be told apart" in text for text in (unclear.abstract, *unclear.told))


def test_every_difference_is_drawn_where_it_lies_and_ours_at_nothing() -> None:
    drawing = contrasts(comparison(0.3))
    panel = drawing.axes[0]
    marks = {}
    for line in panel.lines:
        if line.get_marker() not in ("None", ""):
            x, y = (np.ravel(values)[0] for values in line.get_data())
            marks[float(y)] = float(x)
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert dict(zip(names, marks.values(), strict=True)) == {"prompt": 0.3, "anchor": 0.0}
    assert panel.get_xlim() == pytest.approx((-0.9, 0.9))


# ── hostile text ────────────────────────────────────────────────────────────────────────────────


def test_no_text_is_a_command_of_latex() -> None:
    made = latex(HOSTILE + string.printable)
    known = r"\\(textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|"
    known += r"textasciigrave){}|\\[{}$&#%_]|{\[}|{\*}|\$\\?[\w-]+\$"
    rest = re.sub(known, "", made)
    assert not re.search(r"[\\{}$&#%_^~<>|*\[]", rest), rest
    assert "\n" not in made and "\x1b" not in made and "\u202e" not in made
    assert latex("Δ −1 [2, 3]") == r"$\Delta$ $-$1 {[}2, 3]"


def test_no_text_is_markup_of_markdown() -> None:
    made = markdown(HOSTILE)
    assert "{{<" not in made and made.startswith("\\- [x\\](http")
    for mark in r"*_{}<>#$@|`&!":
        assert len(re.findall(rf"(?<!\\)(?:\\\\)*{re.escape(mark)}", made)) == 0, mark
    assert "\n" not in made and "--" not in made.replace("\\-", "")
    for start in ("1. a", "(a) b", "i) c", "+ d", ": e", "=== f", "[g]: h"):
        assert "\\" in markdown(start)
    assert inline("+0.1 [−0.2, 0.3] nats/token") == "+0.1 [−0.2, 0.3] nats/token"


@pytest.mark.parametrize("name", ["run", "compare"])
def test_hostile_texts_are_in_no_file_as_they_were(papers: dict[str, Path], name: str) -> None:
    texts = [
        path for path in papers[name].rglob("*") if path.suffix in (".md", ".tex", ".yml", ".qmd")
    ]
    assert len(texts) >= 10
    for path in texts:
        text = path.read_text()
        assert "include secret" not in text or path.suffix != ".qmd"
        assert "{{< include secret" not in text
        assert path.suffix == ".tex" or not re.search(r"(?<!\\)\]\(http", text)
        assert "\\input{/etc" not in text and "\x1b" not in text
        if path.suffix == ".md":
            rows = [line for line in text.splitlines() if line.startswith("|")]
            ways = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
            assert len(ways) <= 1, "a cell ended a column"


# ── the folder ──────────────────────────────────────────────────────────────────────────────────


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PLATES", ())


def of_run(folder: Path, **changes: Any) -> RunRecord:
    record = reports.run_record(**changes)
    store.write_record(folder / "run.json", record)
    return record


def test_the_same_record_makes_the_same_paper_and_later_ones_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    of_run(tmp_path)
    out = tmp_path / "paper"
    main(["paper", str(tmp_path / "run.json")])
    first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "paper.html").write_text("rendered")
    main(["paper", str(tmp_path), "--out", str(out)])
    again = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert again == first | {out / "paper.html": b"rendered"}
    of_run(tmp_path, rounds=(), best=None)
    main(["paper", str(tmp_path), "--out", str(out)])
    assert (
        not (out / "tables/course.md").exists()
        or "folded" not in (out / "tables/course.md").read_text()
    )
    held = store.read_record(out / RECORD, PaperRecord)
    assert held.files.keys() == {
        str(path.relative_to(out)) for path in out.rglob("*")
        if path.is_file() and path.name not in (RECORD, "paper.html")
    }  # fmt: skip
    assert not list(tmp_path.glob(f"{MAKING}*"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("unfinished", "is not finished (it is interrupted)"),
        ("foreign", "holds something that is no paper"),
        ("other", "holds the paper of run other"),
        ("edited", "paper.qmd has changed since it was written"),
        ("file", "is a file, not a folder"),
        ("none", "is not a run folder"),
    ],
)
def test_what_cannot_be_made_is_one_message_and_nothing_is_touched(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: str,
    words: str,
) -> None:
    quick(monkeypatch)
    record, out = of_run(tmp_path), tmp_path / "out"
    match spoil:
        case "unfinished":
            of_run(tmp_path, status="interrupted")
        case "foreign":
            out.mkdir()
            (out / "thesis.tex").write_text("mine")
        case "other":
            write_paper(record.model_copy(update={"name": "other"}), out)
        case "edited":
            write_paper(record, out)
            (out / "paper.qmd").write_text("mine")
        case "file":
            (tmp_path / "out").write_text("a file")
            out = out / "paper"
        case _:
            (tmp_path / "run.json").unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        main(["paper", str(tmp_path), "--out", str(out)])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and words in re.sub(r"\s+", " ", said)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_disk_that_refuses_leaves_the_earlier_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    record, out = reports.run_record(), tmp_path / "out"
    write_paper(record, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    rename, refused = Path.rename, []

    def once(self: Path, target: Path) -> Path:
        if target == out and not refused:
            refused.append(self)
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(UserError, match="No space left"):
        write_paper(record, out)
    assert not list(tmp_path.glob(f"{MAKING}*"))
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert json.loads((out / RECORD).read_text())["version"] == 1
