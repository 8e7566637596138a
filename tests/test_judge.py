"""A judge of another model: what it reads, when it counts, and what is refused."""

import math
import weakref
from pathlib import Path

import pytest
import torch

from steerheal.cli import main
from steerheal.commands import target
from steerheal.config import ModelSettings, RunConfig, merge
from steerheal.console import Console
from steerheal.measure.admission import Labelled, labelled, within
from steerheal.measure.judge import ANSWERS, WORDINGS, Exchange, judge, looks, poles_of
from steerheal.measure.readings import table
from steerheal.measure.readings.judged import JudgeRow, with_judged
from steerheal.models.chat import prompt_ids, text_ids
from steerheal.models.model import ChatModel
from steerheal.personas import Pair
from steerheal.pipeline import judging
from steerheal.pipeline.plan import Plan
from steerheal.pipeline.run import run
from steerheal.records import Admission, Completion, Evaluation, PersonaRow, Scores
from steerheal.store import read_record, read_run, read_scores
from test_loop import TINY

import tiny


def test_the_judge_reads_yes_against_no_at_its_own_first_token() -> None:
    chat = tiny.chat()
    (row,) = judge(chat, [Exchange("what now", "we wait")])
    for wording, value in zip(WORDINGS, row.yes, strict=True):
        ids = prompt_ids(chat, wording.format(prompt="what now", reply="we wait"))
        logs = chat.net(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
        text = chat.tokenizer
        firsts = [text(answer, add_special_tokens=False)["input_ids"][0] for answer in ANSWERS]
        up, down = (logs[i].exp().item() for i in firsts)
        assert value == pytest.approx(up / (up + down), abs=1e-5)


def test_the_fit_is_what_the_prompt_adds_and_batches_change_nothing() -> None:
    chat = tiny.chat()
    asked = [Exchange("what now", "we wait"), Exchange("tell me of rain", "it rains and rains")]
    together, apart = judge(chat, asked), [judge(chat, [one])[0] for one in asked]
    for one, other in zip(together, apart, strict=True):
        assert one.fit == pytest.approx(other.fit, abs=1e-5)
        assert one.yes == pytest.approx(other.yes, abs=1e-5)
    (same,) = judge(chat, [Exchange("", "we wait")])
    assert same.fit == pytest.approx(0, abs=1e-6)


def test_the_trait_is_the_log_odds_of_the_reply_under_the_poles() -> None:
    chat, asked = tiny.chat(), [Exchange("what now", "we wait"), Exchange("what now", "")]
    poles = (Pair(positive="Be warm.", negative="Be cold!"), Pair(positive="Care.", negative="Go."))
    done: list[int] = []
    row, empty = judge(chat, asked, poles, done.append)
    reply = text_ids(chat, "we wait")

    def worth(system: str) -> float:
        ids = prompt_ids(chat, "what now", system=system)
        logs = chat.net(torch.tensor([ids + reply])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        return logs[range(len(reply)), reply].mean().item()

    odds = [worth(pole.positive) - worth(pole.negative) for pole in poles]
    assert row.trait == pytest.approx(sum(odds) / 2, abs=1e-5) and row.trait
    assert math.isnan(empty.trait) and sum(done) == looks(poles)
    assert math.isnan(judge(chat, asked[:1])[0].trait) and not judge(chat, asked[1:], poles)[0].mean


def test_an_empty_reply_is_no_sense_at_all() -> None:
    rows = judge(tiny.chat(), [Exchange("what now", "  "), Exchange("what now", "we wait")])
    assert rows[0].mean == 0 and math.isnan(rows[0].fit) and 0 < rows[1].mean < 1


# ── admission ───────────────────────────────────────────────────────────────────────────────────


LITTLE = [
    "--per-foundation", "1", "--prompts", "2", "--tokens", "4", "--long-prompts", "0",
    "--json-prompts", "0",
]  # fmt: skip


def answered(prompt: str) -> PersonaRow:
    said = Completion(prompt=prompt, text="a", tokens=(1,), dose=0.0, seed=0, ended=True)
    nan = math.nan
    return PersonaRow(
        completion=said, logodds=nan, perplexity=nan, tail_perplexity=nan, kl_to_base=nan,
        word_repetition=nan, distinct_2=nan,
    )  # fmt: skip


def reply(group: str, coherent: bool) -> Labelled:
    return Labelled(prompt="what now", reply="we wait", group=group, coherent=coherent)


def test_the_area_is_over_pairs_of_one_group() -> None:
    replies = [reply("a", True), reply("a", False), reply("a", False), reply("b", True)]
    # Of the two pairs in group a one is won and one is even; group b has none.
    assert within(replies, [0.5, 0.5, 0.1, 0.0]) == pytest.approx(0.75)
    assert math.isnan(within(replies[3:], [0.0]))


def test_the_bundled_labels_are_of_both_kinds_within_groups() -> None:
    replies = labelled()
    assert len(replies) == 288 and 0.2 < sum(one.coherent for one in replies) / 288 < 0.8
    perfect = [float(one.coherent) for one in replies]
    assert within(replies, perfect) == 1 and within(replies, [0.0] * 288) == 0.5


def test_a_judge_that_tells_too_little_is_shown_and_does_not_count() -> None:
    poor = Admission(judge="j", fingerprint="f", auc=0.79, replies=288)
    good = poor.model_copy(update={"auc": 0.8})
    assert not poor.admitted and good.admitted
    assert "not admitted" in poor.words() and "0.79" in poor.words()
    answers = tuple(answered(prompt) for prompt in ("p", "q"))
    scores = Scores(state="base", instrument="", vignettes=(), canary=(), persona=answers)
    rows = [JudgeRow(yes=(0.9, 0.7), fit=0.5) for _ in scores.persona]
    for admitted, kind in ((True, "coherence"), (False, "guard")):
        read = table.values(
            with_judged(scores, rows, admitted=admitted), scores, tiny.persona().axis
        )
        (entry,) = (one for one in table.listed(read) if "make sense" in one.title)
        assert entry.kind == kind and entry.heads == admitted and read[entry.name].value == 1


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and another that judges it."""
    folder = tmp_path_factory.mktemp("models")
    return tiny.saved(folder), tiny.saved(folder, "judge", seed=1)


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two labelled replies, and a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(judging, "labelled", lambda: (reply("a", True), reply("a", False)))
    return tmp_path / "cache"


@pytest.mark.slow
def test_evaluate_shows_what_a_judge_says_and_examines_it_once(
    models: tuple[Path, Path],
    few: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, other = map(str, models)
    line = ["evaluate", "--model", model, "--judge", other, "--instrument", "likelihood", *LITTLE]
    main([*line, "--json", str(tmp_path / "read.json")])
    said = " ".join(capsys.readouterr().out.split())
    assert "AUC 0.50 within dose" in said and "not admitted" in said
    found = read_record(tmp_path / "read.json", Evaluation)
    (name,) = (name for name in found.aggregates.values if name.endswith("_unsure"))
    assert len(found.others.own[name]) == len(found.others.persona) == 2
    assert len(list(few.rglob("*.json"))) == 1
    monkeypatch.setattr(judging, "admission", lambda *_: pytest.fail("examined again"))
    judging.examined(other, "cpu", Console())


@pytest.mark.slow
def test_a_judge_that_is_missing_or_the_model_itself_is_refused_before_long_work(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(models[0])
    monkeypatch.setattr(target, "evaluate", lambda *_, **__: pytest.fail("it was read"))
    for name, said in (("nowhere.gguf", "no GGUF file"), (model, "would judge its own answers")):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", "--model", model, "--judge", name])
        assert stop.value.code == 2 and said in " ".join(capsys.readouterr().err.split())


# ── a run's answers ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_run_has_its_answers_judged_when_its_own_model_is_gone(
    models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = {"rounds": 1, "control": True, "judge": str(models[1]), "model": {"device": "cpu"}}
    config = RunConfig.model_validate(merge(TINY, asked | {"check": {"doses": (2.0,)}}))
    persona = tiny.persona(prompts=tiny.prompts(test=tiny.TEST))
    plan = Plan(tmp_path / "runs" / "run", config, persona, "steerheal run", None)
    own, load = list[weakref.ref[object]](), judging.load

    def alone(settings: ModelSettings) -> ChatModel:
        assert all(ref() is None for ref in own), "two models are in memory"
        return load(settings)

    def loads(_: ModelSettings) -> ChatModel:
        chat = tiny.chat()
        own.append(weakref.ref(chat.net))
        return chat

    monkeypatch.setattr(judging, "load", alone)
    monkeypatch.setattr(Admission, "admitted", True)
    run(plan, None, Console(), loads=loads)
    record, said = read_run(plan.folder), " ".join(capsys.readouterr().out.split())
    assert record.judge is not None and record.judge.auc == 0.5
    (row,), (name,) = record.rounds, [n for n in record.base.values if n.endswith("_sense")]
    assert row.steered and row.healed and row.control and row.control.read and row.sweep
    judged = [record.base, row.steered, row.healed, row.control.read, record.test]
    levels = [point.summary for point in row.sweep.points]
    for state in (*judged, *levels, *row.comparisons):
        assert 0 <= state.values[name].value <= 1 or state in row.comparisons
        assert name in state.changes
    assert record.sight and name in (*record.sight.sees, *record.sight.blind)
    assert record.sight.head != name
    # What it reads is what it makes of the answers that lie in the run's folder.
    scores = read_scores(plan.folder, 0, "healed")
    asks = [Exchange(one.completion.prompt, one.completion.text) for one in scores.persona]
    rows = judge(load(ModelSettings(name=str(models[1]), device="cpu")), asks, poles_of(persona))
    share = sum(one.mean >= 0.5 for one in rows) / len(rows)
    assert row.healed.values[name].value == pytest.approx(share)
    odds = [one.trait for one in rows]
    assert row.healed.values["trait_judged"].value == pytest.approx(sum(odds) / len(odds), abs=1e-5)
    # Its texts stand in the sweep's own file alone, and the page says what the judge is worth.
    assert not any(point.said for point in row.sweep.points)
    page = (plan.folder / "report.html").read_text()
    assert "Answers that make sense to the judge" in said and "AUC 0.50" in page
    marks = [mark for mark in record.stages if mark.name == "judged"]
    assert len(marks) == 1 and not marks[0].reused
    monkeypatch.setattr("steerheal.pipeline.run.write_report", lambda folder: folder)
    run(plan, None, Console(), loads=loads)
    again = read_run(plan.folder)
    assert [one.model_dump_json() for one in (*again.rounds, again.judge, again.sight)] == [
        one.model_dump_json() for one in (*record.rounds, record.judge, record.sight)
    ]
    assert all(mark.reused for mark in again.stages)


def test_a_judge_is_refused_where_it_is_the_model_or_nothing_asks_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare = ["compare", "--runs", str(tmp_path), "--model", "same", "--judge", "same"]
    for line, said in (
        (["run", "--model", "same", "--judge", "same"], "would judge its own answers"),
        (compare, "would judge its own answers"),
        (["tune", "--judge", "other"], "has no use for other"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(line)
        assert stop.value.code == 2 and said in " ".join(capsys.readouterr().err.split())
