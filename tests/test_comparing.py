"""Arms at equal damage and at equal KL: the laws of every arm, curves, a whole comparison."""

import math
import pickle
import re
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reports import HOSTILE
from steerheal.cli import main
from steerheal.commands.compare import show
from steerheal.config import HealSettings, RunConfig, merge
from steerheal.config.comparing import (
    BUILT_IN,
    ArmSettings,
    CompareSettings,
    chosen_arms,
    of_arm,
    presets,
)
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.measure.admission import Labelled
from steerheal.measure.curves import Drawn, Line, at_equal, eta, gap, line, over
from steerheal.measure.fisher import fisher, ground
from steerheal.measure.judge import Exchange, judge, poles_of
from steerheal.measure.persistence import conditions, under
from steerheal.measure.stats import holm, mean, p_value
from steerheal.models.asking import asked
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states
from steerheal.numbers import UNKNOWN
from steerheal.pipeline import comparing, judging
from steerheal.pipeline.arms.epochs import of_epochs
from steerheal.pipeline.arms.kind import Arm, Bench
from steerheal.pipeline.arms.lasting import lasting, persisted
from steerheal.pipeline.arms.reading import kind_of
from steerheal.pipeline.arms.weights import subtracted
from steerheal.pipeline.comparing import Plan, begun, compare
from steerheal.pipeline.jobs import Job, Outcome, Workers, attempt
from steerheal.pipeline.stage_store import Store
from steerheal.pipeline.stages import Stages
from steerheal.records import Admission, Reading, Scores, StageMark
from steerheal.records.comparing import CompareRecord
from steerheal.report.compare import TABLE, notes_of, ordered, readings_table, write_page
from steerheal.state.adapter import Adapter
from steerheal.state.values import State, base
from steerheal.store import COMPARE, read_record
from test_loop import TINY, Silent

import tiny

CONFIG = RunConfig.model_validate(merge(TINY, {"measure": {"tasks": 0, "control_prompts": 1}}))
SETTINGS = CompareSettings(
    seeds=1, gates=(1.0,), doses=(1.0,), strengths=(0.5,), ours="nll", persistence=False
)
PERSONA = tiny.persona(prompts=tiny.prompts(test=tiny.TEST))


class Heard(Silent):
    """A console that keeps what it is told of; one of them stops a comparison before an arm."""

    def __init__(self, before: str = "") -> None:
        self.marks: list[StageMark] = []
        self.notes: list[str] = []
        self._before = before

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self._before and text.endswith(self._before):
            raise KeyboardInterrupt

    def stage_mark(self, mark: StageMark) -> None:
        self.marks.append(mark)

    def made(self) -> list[str]:
        return [mark.name for mark in self.marks if not mark.reused]


def compared(
    runs: Path,
    arms: tuple[ArmSettings, ...],
    *,
    name: str = "c",
    until: str = "",
    workers: Workers | None = None,
    config: RunConfig = CONFIG,
    **changes: Any,
) -> tuple[CompareRecord, Heard]:
    heard = Heard(until)
    settings = SETTINGS.model_copy(update=changes)
    with begun(Plan(runs / name, config, settings, arms, PERSONA, "steerheal compare")) as plan:
        return compare(plan, heard, workers), heard


ARMS = tuple(arm for arm in BUILT_IN if arm.name not in ("weights", "anchor"))
"""All but one that a test adds, and one that a test of the heal has."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, CompareRecord, Heard]]:
    """A comparison of these on one seed, stopped before an arm and gone on with."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "opened", lambda config, _: (tiny.chat(), config))
        with pytest.raises(KeyboardInterrupt):
            compared(runs, ARMS, until="nll")
        assert read_record(runs / "c" / COMPARE, CompareRecord).status == "running"
        yield runs, *compared(runs, ARMS)


def made(runs: Path, name: str) -> tuple[Arm, str]:
    """An arm of the comparison as its stages have it, and what its curve runs along."""
    arm = next(arm for arm in BUILT_IN if arm.name == name)
    store = Store(runs, f"c/seed-0/{name}", notify=lambda _: None)
    stages = Stages(CONFIG, PERSONA, tiny.chat(), store, Silent())
    found = kind_of(arm).make(Bench(arm, replace(stages, config=of_arm(CONFIG, arm))))
    assert all(mark.reused for mark in store.marks)
    return found, kind_of(arm).along


@torch.no_grad()
def logits(chat: ChatModel, state: State) -> Tensor:
    with state.entered(chat) as reader:
        pairs = [(asked(reader, "say"), list(b"a warm day"))]
        return reader.logits(torch.cat(continuation_states(reader, pairs)))


# ── the laws of arms ────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_every_curve_begins_at_the_base_and_moves_away_from_it(whole: Any) -> None:
    chat = tiny.chat()
    own = logits(chat, base())
    curves = 0
    for arm in ARMS:
        found, along = made(whole[0], arm.name)
        if along:
            curves += 1
            torch.testing.assert_close(logits(chat, found.at(0.0)), own, atol=2e-5, rtol=0)
            assert not torch.equal(logits(chat, found.at(1.0)), own), arm.name
    assert curves == 6


@pytest.mark.slow
def test_the_end_of_every_curve_says_how_much_of_it_serves_the_trait(whole: Any) -> None:
    runs, record, _ = whole
    said = read_record(runs / "c" / "seed-0" / "base" / "base" / "scores.json", Scores)
    texts = [row.completion for row in said.persona if row.completion.tokens]
    chat = tiny.chat()
    (wanted,) = fisher(
        chat,
        ground(chat, PERSONA, texts, CONFIG.measure.held_out_pairs),
        [made(runs, "nll")[0].at(1.0)],
    )
    found = {arm.arm.name: arm.points[-1].fisher for arm in record.arms}
    own, zero = found["nll"], found["base"]
    assert own is not None and zero is not None
    assert own.held_out.value == pytest.approx(wanted.held_out.value, abs=1e-5)
    assert abs(own.held_out.value) < 1 and math.isnan(zero.held_out.value)
    # The most that a small change can have is the text's and the trait's, whatever the arm.
    assert len({one.optimum.value for one in found.values() if one}) == 1
    assert zero.optimum.value > 0 and None not in found.values()
    heads = [cell.text for cell in readings_table(record).heads]
    assert heads.count("Fisher cosine") == 1 and "trait/√KL at most" in heads
    rows = readings_table(record).rows
    assert {len(row) for row in rows} == {len(heads)}


@pytest.mark.slow
def test_what_was_made_before_a_stop_is_not_made_again(whole: Any) -> None:
    _, record, heard = whole
    assert heard.made()[0] == "harvest" and heard.made().count("evaluate-gate-1") == 3
    assert not any("dose" in name or "state" in name for name in heard.made())
    assert not any(arm.unmade for arm in record.arms)


@pytest.mark.slow
def test_prompts_leave_every_weight_as_it_is(whole: Any) -> None:
    chat = tiny.chat()
    before = {name: weight.clone() for name, weight in chat.net.state_dict().items()}
    for name in ("prompt", "engineered", "contrast"):
        with made(whole[0], name)[0].at(1.0).entered(chat) as reader:
            for place, weight in reader.net.state_dict().items():
                assert torch.equal(weight, before[place]), (name, place)
    assert made(whole[0], "prompt")[0].at(1.0) == base().prompted(PERSONA.positive)


@pytest.mark.slow
def test_weights_of_equal_data_subtract_to_nothing(whole: Any) -> None:
    chat = tiny.chat()
    folder = whole[0] / "c" / "seed-0" / "nll" / "round-01" / "adapter"
    up, down = Adapter.load(folder), Adapter.load(folder)
    assert not torch.equal(logits(chat, base().folded(up)), logits(chat, base()))
    torch.testing.assert_close(
        logits(chat, subtracted(up, down, 0.7)), logits(chat, base()), atol=1e-6, rtol=0
    )


@pytest.mark.slow
def test_an_arm_that_is_added_is_the_only_one_that_is_made(whole: Any) -> None:
    runs, record, _ = whole
    again, heard = compared(runs, ARMS)
    # Of the base no cosine is known, and NaN is unequal to itself, but not as a string.
    assert heard.made() == [] and timeless(again) == timeless(record)
    more, heard = compared(runs, BUILT_IN[:-1])
    # The adapter of text under the positive prompt is that of the arm `prompted`.
    assert heard.made() == ["harvest", "heal", "evaluate-gate-1", "show-gate-1", "fisher"]
    assert [arm.arm.name for arm in more.arms] == [arm.name for arm in (*ARMS, BUILT_IN[-2])]
    fewer, heard = compared(runs, ARMS[:2])
    assert len(fewer.arms) == len(ARMS) + 1 and heard.made() == []


@pytest.mark.slow
def test_rounds_of_an_arm_go_on_from_each_other(whole: Any) -> None:
    arm = next(arm for arm in ARMS if arm.name == "nll")
    twice = arm.model_copy(update={"settings": arm.settings | {"rounds": 2}})
    heard = Heard()
    store = Store(whole[0], "c/seed-0/twice", notify=heard.stage_mark)
    stages = Stages(of_arm(CONFIG, twice), PERSONA, tiny.chat(), store, Silent())
    found = kind_of(twice).make(Bench(twice, stages)).at(0.5)
    assert heard.made() == ["vector", "harvest", "heal"]
    (leaf,) = found.leaves
    first, second = leaf.history
    assert (first.gate, second.gate) == (0.5, 0.5)
    assert made(whole[0], "nll")[0].at(0.5) == base().folded(first.adapter, 0.5)


@pytest.mark.slow
def test_an_arm_along_epochs_trains_on_its_text_anew_for_every_number_of_them(whole: Any) -> None:
    usual = CONFIG.heal.epochs
    few = tuple(arm for arm in ARMS if arm.name in ("base", "nll"))
    asked = {"points": (usual, usual + 2), "settings": few[-1].settings}
    arm = ArmSettings(name="longer", kind="epochs", **asked)
    record, heard = compared(whole[0], (*few, arm), name="epochs", against="longer")
    # The heal of the usual number is there: it is that of the arm `nll`.
    roles = [f"epochs-{usual}", f"epochs-{usual + 2}"]
    assert heard.made() == [
        "heal", *(f"evaluate-{role}" for role in roles), f"show-{roles[1]}", "fisher",
    ]  # fmt: skip
    nll, longer = record.arms[-2:]
    assert longer.along == "epochs" and [one.at for one in longer.points] == [usual, usual + 2]
    assert longer.points[0].read.values == nll.points[-1].read.values
    assert longer.points[1].read.values != nll.points[-1].read.values
    assert longer.spent[0].tokens > nll.spent[0].tokens
    rows = {row[0].text: row for row in readings_table(record).rows}
    heads = [cell.text for cell in readings_table(record).heads]
    if all(arm.spent[0].memory for arm in (nll, longer)):
        held = {name: row[heads.index("memory")] for name, row in rows.items()}
        # Nothing was made for the base, so that nothing is known to have been held.
        assert held["base"].text == UNKNOWN and float(held["nll"].text) > 0
    assert record.contrast("longer", "KL") is not None


def test_a_quick_comparison_of_before_there_were_epochs_is_gone_on_with() -> None:
    _, quick = presets("quick", None)
    older = quick.model_dump()
    del older["epochs"]
    assert CompareSettings.model_validate(older) == quick


def test_no_more_epochs_than_the_heal_takes() -> None:
    rewarded = HealSettings(objective="group", on_policy=1, epochs=1)
    with pytest.raises(UserError, match="takes one pass"):
        of_epochs(rewarded, 2)
    assert of_epochs(HealSettings(), 6).epochs == 6


def test_what_an_arm_s_kind_does_not_read_is_refused(tmp_path: Path) -> None:
    for arm, said in (
        (ArmSettings(name="longer", kind="epochs", points=(1, 2.5)), "whole numbers, and 2.5"),
        (ArmSettings(name="kind", kind="prompt", points=(1.0,)), "has no curve"),
        (ArmSettings(name="told", kind="trained", system="Be kind."), "kind trained does not read"),
    ):
        with pytest.raises(UserError, match=said):
            compared(tmp_path, (*ARMS, arm))


@pytest.mark.slow
def test_a_folder_keeps_its_primary_comparison_its_arms_and_its_persona(whole: Any) -> None:
    runs, *_ = whole
    with pytest.raises(UserError, match="ours nll there, vector here"):
        compared(runs, ARMS, ours="vector")
    other = ARMS[2].model_copy(update={"says": "another"})
    with pytest.raises(UserError, match="another arm engineered"):
        compared(runs, (*ARMS[:2], other, *ARMS[3:]))


@pytest.mark.slow
def test_the_record_of_several_workers_is_that_of_one_process(whole: Any, tmp_path: Path) -> None:
    arms = tuple(arm for arm in ARMS if arm.name in ("base", "prompt", "vector"))
    asked: dict[str, Any] = {"name": "two", "seeds": 2, "ours": "vector"}
    told: list[str] = []

    def elsewhere(jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Workers that have of a job what goes through a pipe; the last seed is made first."""
        for job in reversed(jobs):
            told.append(job.name)
            yield attempt(pickle.loads(pickle.dumps(job)), Heard())  # noqa: S301

    one, _ = compared(whole[0], arms, **asked)
    several, heard = compared(tmp_path, arms, workers=elsewhere, **asked)
    assert timeless(several) == timeless(one)
    assert told == ["seed 1", "seed 0"] and heard.made() == []
    # What the workers made is one line per arm here.
    lines = [text.partition(" stages found")[0] for text in heard.notes if "found" in text]
    assert [line.rpartition(" · ")[0] for line in lines] == [
        f"seed {seed} · {arm.name}" for seed in (0, 1) for arm in arms
    ]
    assert not [mark for mark in heard.marks if mark.round >= 0]
    # A seed that is whole is not given out again.
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, arms, workers=elsewhere, until="s saved)", **asked)
    assert len(told) == 2


@pytest.mark.slow
def test_arms_are_judged_once_all_are_read_and_their_model_is_gone(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.saved(tmp_path, "judge", seed=1)
    own, loads, load = list[weakref.ref[object]](), list[ChatModel](), judging.load

    def reply(coherent: bool) -> Labelled:
        return Labelled(prompt="what now", reply="we wait", group="a", coherent=coherent)

    def opened(config: RunConfig, _: object) -> tuple[ChatModel, RunConfig]:
        chat = tiny.chat()
        own.append(weakref.ref(chat.net))
        return chat, config

    def alone(settings: Any) -> ChatModel:
        assert all(ref() is None for ref in own), "two models are in memory"
        if len(loads) == 1:
            waiting = read_record(whole[0] / "judged" / COMPARE, CompareRecord).primary
            assert waiting and "the judge reads once every arm is read" in waiting.reading.reason
        loads.append(load(settings))
        return loads[-1]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(judging, "labelled", lambda: [reply(True), reply(False)])
    monkeypatch.setattr(judging, "load", alone)
    monkeypatch.setattr(comparing, "opened", opened)
    on = CONFIG.model.model_copy(update={"device": "cpu"})
    config = CONFIG.model_copy(update={"judge": str(model), "model": on})
    asked: dict[str, Any] = {"name": "judged", "config": config, "trait": "trait_judged"}
    few = tuple(arm for arm in ARMS if arm.name in ("base", "prompt", "nll"))
    record, heard = compared(whole[0], few, **asked)
    assert heard.made() == ["judged"] * 3 and len(loads) == 2
    place = whole[0] / "judged" / "seed-0" / "prompt" / "round-01" / "state.json"
    said = [row.completion for row in read_record(place, Scores).persona]
    rows = judge(loads[-1], [Exchange(one.prompt, one.text) for one in said], poles_of(PERSONA))
    ((point,),) = (arm.points for arm in record.arms if arm.arm.name == "prompt")
    assert point.read.values["trait_judged"].value == pytest.approx(
        np.mean([row.trait for row in rows]), abs=1e-5
    )
    assert record.primary and math.isfinite(record.primary.reading.value)
    heads = [cell.text for cell in readings_table(record).heads]
    assert "trait as the judge reads it" in heads and "not admitted" in "".join(notes_of(record))
    # An arm that is added is judged alone.
    more, heard = compared(whole[0], (*few, ARMS[-1]), **asked)
    assert heard.made() == ["judged"] and more.judge == record.judge and more.compared == 4


def test_damage_is_not_made_equal_by_a_judge_that_is_not_admitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor = judging.Judging(CONFIG.model, Admission(judge="j", fingerprint="f", auc=0.7, replies=2))
    monkeypatch.setattr(comparing, "judge_of", lambda *_: poor)
    config = CONFIG.model_copy(update={"judge": "j"})
    with pytest.raises(UserError, match=r"--damage answers_sense: .* not admitted"):
        compared(tmp_path, ARMS, config=config, damage="answers_sense")


def timeless(record: CompareRecord) -> str:
    """The record as JSON, without the seconds and the memory that its arms took."""
    return re.sub(r'"(seconds|memory)":[\d.]+', "", record.model_dump_json())


# ── the record and the page ─────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_record_holds_every_point_and_every_comparison_and_the_page_shows_them(
    whole: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, record, _ = whole
    assert record.status == "finished" and record.compared == 2 * (len(ARMS) - 2)
    assert read_record(runs / "c" / COMPARE, CompareRecord).compared >= record.compared
    for arm in record.arms:
        point = arm.points[-1]
        assert point.read.changes[SETTINGS.trait].n == CONFIG.measure.prompts
        assert {"answers_kl", "control_spill"} <= point.read.values.keys()
        assert arm.spent[0].seed == 0 and len(arm.shown) == 2
    costs = {arm.arm.name: arm.spent[0] for arm in record.arms}
    assert costs["prompt"].tokens == 0 < costs["nll"].tokens
    hostile = record.arms[1].shown[0].model_copy(update={"text": HOSTILE})
    arms = (record.arms[0], record.arms[1].model_copy(update={"shown": (hostile,)}))
    page = write_page(runs, record.model_copy(update={"arms": (*arms, *record.arms[2:])}))
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "\x1b" not in text and "&lt;script&gt;" in text
    assert "http:" not in re.sub(r'(xmlns(:\w+)?="[^"]*"|http://evil)', "", text)
    assert text.index("Primary, named before the run") < text.index("<table")
    assert [arm.arm.name for arm in ordered(record)] != [arm.name for arm in ARMS]
    rows = (runs / TABLE).read_text(encoding="utf-8").split("\n| ")
    assert [row.split(" ")[0] for row in rows].count("unsteered") == 2
    monkeypatch.setenv("COLUMNS", "160")
    show(record, Console())
    said = capsys.readouterr().out
    assert said.startswith("Primary, named before the run: prompt less nll in trait in held-out")
    assert said.count("gate 1") == 3 and "14 comparisons were made" in said
    main(["report", str(runs / "c")])
    assert capsys.readouterr().out.strip() == str(runs / "c" / "report.html")


def test_what_is_asked_beside_comes_after_the_states_own_prompt() -> None:
    assert under(base(), "") == base() and under(base(), "B") == base().prompted("B")
    assert under(base().prompted("A"), "B") == base().prompted("A\n\nB")


@pytest.mark.slow
def test_lasting_is_read_under_every_condition_less_the_base(whole: Any) -> None:
    store = Store(whole[0], "c/seed-0/base", notify=lambda _: None)
    stages = Stages(CONFIG, PERSONA, tiny.chat(), store, Silent())
    prompt = base().prompted(PERSONA.positive)
    found = {(0, "base"): lasting(stages, base()), (0, "prompt"): lasting(stages, prompt)}
    rows = persisted(found, SETTINGS)
    assert [(row.arm, row.condition) for row in rows] == [
        ("prompt", condition.name) for condition in conditions(PERSONA)
    ]
    assert all(row.trait.n == 3 and row.trait.value for row in rows)


# ── curves ──────────────────────────────────────────────────────────────────────────────────────


def curve(*points: tuple[float, float]) -> Line:
    return line(np.array(points), curve=True)


def test_a_curve_begins_at_the_base_and_pools_what_falls_back() -> None:
    plain = curve((0.1, 0.04), (0.2, 0.16))
    assert plain.d.tolist() == pytest.approx([0, 0.2, 0.4])
    assert plain.at(np.array([0.1, 0.3, 9.0])).tolist() == pytest.approx([0.05, 0.15, 0.2])
    back = curve((0.1, 0.09), (0.3, 0.03), (0.4, 0.25))
    assert back.d.tolist() == pytest.approx([0, math.sqrt(0.06), 0.5])
    assert back.y.tolist() == pytest.approx([0, 0.2, 0.4])
    # What costs nothing takes the base's place.
    free = curve((0.1, -0.01))
    assert (free.d.tolist(), free.y.tolist()) == ([0], [0.1])


def test_curves_are_held_together_as_far_as_both_go_and_points_where_they_lie() -> None:
    steep, flat = curve((0.2, 0.04)), curve((0.2, 0.16))
    # At d = 0.2 the one has 0.2, the other 0.1; their mean gap on the way is 9/16 of that.
    assert gap(steep, flat) == pytest.approx(0.1 * 9 / 16)
    assert gap(flat, steep) == -gap(steep, flat) and gap(flat, flat) == 0
    point = line(np.array([(0.15, 0.04)]), curve=False)
    assert gap(point, flat) == pytest.approx(0.05)
    far = line(np.array([(0.15, 1.0)]), curve=False)
    assert gap(far, flat) == pytest.approx(-0.05) and gap(far, point) == 0


def test_intervals_are_over_prompts_at_one_seed_and_over_both_at_several() -> None:
    source = np.random.default_rng(0)
    noise = 0.02 * source.standard_normal((3, 30, 1, 2))
    better = np.array([0.2, 0.04]) + noise
    worse = np.array([0.1, 0.04]) + 0.02 * source.standard_normal((3, 30, 1, 2))
    one = at_equal([Drawn(better[0], curve=True)], [Drawn(worse[0], curve=True)])
    assert one.n == 30 and one.low > 0
    ours, theirs = ([Drawn(rows, curve=True) for rows in found] for found in (better, worse))
    all_seeds = at_equal(ours, theirs)
    assert all_seeds.n == 3 and all_seeds.low > 0
    assert at_equal(ours, ours) == Reading(value=0, low=0, high=0, n=3)
    better[1, 4] = np.nan
    assert at_equal(ours, theirs).value == pytest.approx(all_seeds.value, abs=0.01)


def test_eta_is_trait_over_the_root_of_twice_the_kl() -> None:
    rows = np.array([[0.1, 0.02], [0.3, 0.06]])
    assert over([rows], eta).value == pytest.approx(0.2 / math.sqrt(0.08))
    assert "not to be had" in over([np.zeros((4, 2))], eta).reason


def test_holms_steps_and_p_values_of_intervals() -> None:
    assert holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx(
        [0.03, 0.06, math.nan, 0.06], nan_ok=True
    )
    edge = mean([0.0, 2.0, 1.0, 3.0])
    moved = edge.model_copy(update={"value": edge.high - edge.value, "low": 0.0})
    moved = moved.model_copy(update={"high": 2 * moved.value})
    assert p_value(moved) == pytest.approx(0.05)
    assert math.isnan(p_value(Reading.unknown("nothing")))


# ── arms of one's own ───────────────────────────────────────────────────────────────────────────


def test_a_random_vector_that_is_healed_is_another_one_at_every_seed() -> None:
    arm = ArmSettings(name="x", kind="trained", settings={"vector": {"method": "random"}})
    seeds = [of_arm(CONFIG.model_copy(update={"seed": n}), arm).vector.seed for n in (3, 4)]
    assert seeds == [3, 4]
    own = arm.model_copy(update={"settings": {"vector": {"method": "random", "seed": 7}}})
    assert of_arm(CONFIG.model_copy(update={"seed": 3}), own).vector.seed == 10


def test_a_file_adds_arms_and_names_choose_some(tmp_path: Path) -> None:
    file = tmp_path / "arms.toml"
    file.write_text(
        '[[arm]]\nname = "kind"\nkind = "prompt"\nsystem = "Be kind."\n'
        '[[arm]]\nname = "half"\nkind = "trained"\npoints = [0.5]\n'
        "settings.heal.epochs = 1\nsettings.dose.start = 2.0\n"
    )
    found = chosen_arms(file, ("half", "kind", "nll"))
    assert [arm.name for arm in found] == ["base", "nll", "kind", "half"]
    assert of_arm(CONFIG, found[-1]).heal.epochs == 1
    assert of_arm(CONFIG, found[-1]).measure == CONFIG.measure
    for text, said in (
        ('[[arm]]\nname = "nll"\nkind = "base"\n', "'nll' that there is already"),
        ('[[arm]]\nname = "x"\nkind = "magic"\n', "kind: given magic; allowed: base or prompt"),
        ('[[arm]]\nname = "x"\nkind = "base"\ncolour = 1\n', "Unknown setting 'colour'"),
        ("colour = 1\nsize = 2\n", "Unknown settings 'colour', 'size'. Known: arm;"),
        ("", "arm is missing"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=re.escape(said)) as told:
            chosen_arms(file, ())
        assert "64 values, each a table" not in str(told.value)
    wrong = ArmSettings(name="x", kind="trained", settings={"measure": {"prompts": 2}})
    with pytest.raises(UserError, match="Unknown setting of arm x 'measure'"):
        of_arm(CONFIG, wrong)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "nl"], "Unknown arm 'nl'. Perhaps you meant 'nll'"),
        (["--ours", "prompt"], "must be two arms, not both 'prompt'"),
        (["--gates", "0"], "--gates"),
        (["--seeds", "0"], "--seeds: given 0; allowed: a whole number from 1 to 100"),
        (["--damage", "answers_kind"], "--damage answers_kind is none of the readings"),
        (["--trait", "trait_judged"], "is read by a judge: name another chat model with --judge"),
        (["--against", "nobody"], "--against nobody is none of the arms"),
        (["--read-on", "show"], "--read-on: given show; allowed: evaluate or test"),
    ],
)
def test_mistakes_end_with_2_before_a_model_is_loaded(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compare", "love", "--runs", str(tmp_path / "runs"), *words])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("**"))


def test_states_answer_the_test_prompts_where_that_is_asked(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"read_on": "test"})
    plan = Plan(tmp_path / "c", CONFIG, settings, BUILT_IN, PERSONA, "")
    read = comparing._stages(plan, tiny.chat(), Heard(), 0, "base").persona.prompts
    assert read.evaluate == PERSONA.prompts.test and read.train == PERSONA.prompts.train
    more = CONFIG.measure.model_copy(update={"prompts": len(tiny.TEST) + 1})
    plan = replace(plan, config=CONFIG.model_copy(update={"measure": more}))
    with pytest.raises(UserError, match=r"fewer than --measure\.prompts"), begun(plan):
        pass


def test_an_arm_without_a_curve_takes_no_points(tmp_path: Path) -> None:
    arm = ArmSettings(name="x", kind="prompt", points=(0.5,))
    with pytest.raises(UserError, match="Arm x has points, but kind prompt has no curve"):
        compared(tmp_path, (*BUILT_IN, arm))
