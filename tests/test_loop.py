"""The loop end to end on a tiny model: same record twice, killed anywhere, every way it ends."""

import json
import math
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from reports import put
from steerheal.config import RunConfig, merge
from steerheal.errors import UserError
from steerheal.measure.stats import mean
from steerheal.pipeline import ends, loop, tracking
from steerheal.pipeline.round import Listener
from steerheal.pipeline.stage_store import Store
from steerheal.pipeline.stage_work import Counted
from steerheal.pipeline.stages import Stages
from steerheal.records import Reading, RoundRecord, RunRecord, Scores, Summary
from steerheal.report.page import write_report
from steerheal.state.adapter import Adapter
from steerheal.store import (
    read_harvest,
    read_record,
    read_run,
    read_scores,
    read_shown,
    round_folder,
)
from test_tracking import Kept, plan

import tiny

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {
    "rounds": 2,
    "coherence_floor": 0.0,
    # A control takes as long again as a heal; test_control has it.
    "control": False,
    "vector": {"contexts": 4, "band": (0.3, 0.8)},
    "sampling": {"tokens": 10, "rows": 8},
    "dose": {"start": 1.0, "want": 8, "minimum": 4, "batches": 3, "walks": 2, "target": 0.1},
    "filter": {
        "false_drop": 0.0,
        "rule_drop": 0.0,
        "kl_spike": 1e9,
        "similarity": 9.0,
        "calibration_texts": 8,
        "tail_perplexity": 1e9, "words": 1, "word_repetition": 1.0, "char_repetition": 1.0,
    },
    "heal": {
        "barrier": "kl_rev", "epochs": 1, "rows": 4, "rank": 2, "alpha": 4, "lr": 1e-3,
    },
    "measure": {
        "instrument": "likelihood", "per_foundation": 1, "statements": 4, "prompts": 3, "tokens": 5,
        "long_prompts": 1, "long_tokens": 6, "json_prompts": 0, "held_out_pairs": 1,
        "control_prompts": 1, "control_tokens": 4, "tasks": 1, "task_tokens": 4,
    },
    "check": {"doses": (0.5, 2.0), "prompts": 3, "per_foundation": 1, "tokens": 5},
}  # fmt: skip


class Silent:
    """A watcher that prints nothing."""

    def stage(self, title: str, total: int) -> Any:  # noqa: ARG002
        return nullcontext(lambda _count: None)

    def heal_step(self, number: int, step: object, of: int) -> None: ...

    def note(self, text: str) -> None: ...

    def round_done(self, record: object) -> None: ...


def start(
    runs: Path,
    name: str = "run",
    *,
    until: loop.Until | None = None,
    test: tuple[str, ...] = tiny.TEST,
    listener: Listener | None = None,
    **changes: Any,
) -> RunRecord:
    # A rate that breaks a tiny model is out of the settings' bounds.
    wild = changes.get("heal", {}).pop("lr", None)
    config = RunConfig.model_validate(merge(TINY, changes))
    if wild is not None:
        config = config.model_copy(update={"heal": config.heal.model_copy(update={"lr": wild})})
    chat, persona = tiny.chat(), tiny.persona(prompts=tiny.prompts(test=test))
    store = Store(runs, name, notify=lambda _: None)
    record = RunRecord(
        status="running", name=name, config=config.model_dump(mode="json"), command="steerheal run",
        environment={"fingerprint": chat.fingerprint}, persona=persona.model_dump(mode="json"),
    )  # fmt: skip
    stages = Stages(config, persona, chat, store, Silent())
    return loop.run(stages, record, listener or Silent(), until=until)


def timeless(folder: Path) -> dict[str, Any]:
    """The record without its times, and every file's content beside it."""
    raw = json.loads((folder / "run.json").read_text())
    raw["stages"] = [
        {k: v for k, v in s.items() if k not in ("seconds", "memory", "reused")}
        for s in raw["stages"]
    ]
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }
    return {"record": raw, "files": files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    start(runs)
    return runs / "run"


def test_a_run_leaves_everything_a_reader_needs(finished: Path) -> None:
    record = read_run(finished)
    assert record.status == "finished"
    assert [done.outcome for done in record.rounds] == ["folded", "folded"]
    assert read_scores(finished, -1, "base").state == "base"
    for number in range(2):
        assert read_scores(finished, number, "steered").state == "steered"
        assert read_scores(finished, number, "healed").state == "healed"
        assert len(read_shown(finished, number, "healed").completions) == 2
        assert len(read_harvest(finished, number).judged) == record.rounds[number].drawn
        assert (finished / f"round-0{number + 1}" / "adapter" / "adapter_config.json").is_file()
    assert record.rounds[0].direction_cosine == pytest.approx(1)
    assert record.rounds[1].kl_cumulative == pytest.approx(
        record.rounds[0].kl_round + record.rounds[1].kl_round
    )
    page = write_report(finished).read_text()
    assert "Round 2" in page or "round 2" in page


def test_what_is_planned_is_what_is_made(finished: Path) -> None:
    record = read_run(finished)
    config, persona = record.settings(finished), record.whose(finished)
    planned = [(one.round, one.name) for one in Counted(tiny.chat(), persona, config).stages()]
    made = [(mark.round, mark.name) for mark in record.stages]
    assert planned[:-1] == made[:-1] and planned[-1][1] == made[-1][1]


def test_the_same_settings_give_the_same_record_tracked_or_not(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept()
    monkeypatch.setattr(tracking, "_tracker", lambda *_: kept)
    with tracking.tracked("tensorboard", plan(tmp_path / "run"), Silent()) as listener:
        start(tmp_path, listener=listener)
    losses = [line["heal/ce"] for _, line in kept.lines if "heal/ce" in line]
    rounds = read_run(tmp_path / "run").rounds
    assert losses == [step.ce for row in rounds if row.heal for step in row.heal.steps]
    assert any("test/" in name for name in kept.lines[-1][1]) and kept.ended == 1
    once, again = timeless(finished), timeless(tmp_path / "run")
    del again["files"]["track/tensorboard.json"]
    once["files"] = {k: v for k, v in once["files"].items() if k in again["files"]}
    assert once == again


def made(folder: Path) -> list[str]:
    return [mark.name for mark in read_run(folder).stages if not mark.reused]


def test_runs_that_differ_only_in_the_heal_share_everything_before_it(finished: Path) -> None:
    start(finished.parent, "faster", heal={"barrier": "none", "lr": 2e-3}, rounds=1)
    after = ["heal", "internalise", "evaluate-healed", "show-healed"]
    assert [name for name in made(finished.parent / "faster") if name != "test-healed"] == after


def test_heals_that_come_out_the_same_are_read_once(finished: Path) -> None:
    # One step is too short for a barrier to do anything.
    start(finished.parent, "none", heal={"barrier": "none"}, rounds=1)
    # Only the best round of a run is tested, which need not be the first.
    fresh = [] if read_run(finished).best == 0 else ["test-healed"]
    assert made(finished.parent / "none") == ["heal", *fresh]


def test_a_starved_round_is_recorded_and_is_no_crash(finished: Path) -> None:
    record = start(finished.parent, "starved", filter={"words": 500})
    assert record.status == "finished"
    assert record.rounds[0].outcome == "starved"
    assert "starved" in record.outcome
    assert record.best is None
    # The base's own text does not survive either, so that a lower dose would not help.
    assert len(record.rounds[0].walk) == 1
    assert record.rounds[0].reasons["too short"] == record.rounds[0].drawn
    assert "starved" in write_report(finished.parent / "starved").read_text()


def test_a_rejected_heal_is_recorded_and_not_folded(finished: Path) -> None:
    record = start(finished.parent, "rejected", heal={"lr": 1e30})
    assert record.rounds[0].outcome == "rejected"
    assert "not finite" in record.outcome
    assert record.rounds[0].healed is None


def test_unread_steered_states_leave_their_readings_unknown_and_nothing_else(
    finished: Path,
) -> None:
    record = start(finished.parent, "unread", read_steered=False)
    whole = read_run(finished)
    for ours, theirs in zip(record.rounds, whole.rounds, strict=True):
        assert ours.steered is None
        assert ours.retain is not None
        assert "read_steered" in ours.retain.reason
        assert ours.healed is not None
        assert theirs.healed is not None
        assert ours.healed.model_dump_json() == theirs.healed.model_dump_json()
        assert [item.a for item in ours.comparisons] == ["base"]
    assert "steered reading" not in write_report(finished.parent / "unread").read_text()


def test_completions_whose_trait_is_not_read_are_kept_the_same(
    finished: Path,
) -> None:
    changes = {"filter": {"read_trait": False}, "rounds": 1, "read_prompted": False}
    record = start(finished.parent, "unread-trait", **changes)
    assert record.prompted is None and read_run(finished).prompted is not None
    ours, theirs = read_harvest(finished.parent / "unread-trait", 0), read_harvest(finished, 0)
    assert ours.kept() == theirs.kept()
    assert all(math.isnan(item.verdict.logodds) for item in ours.judged)
    assert not any(math.isnan(item.verdict.logodds) for item in theirs.judged)


def summary_with(whole: RunRecord, gain: float, coherence: float = 1.0) -> Summary:
    healed = whole.rounds[0].healed
    assert healed is not None
    read = Reading(value=gain, low=gain - 0.01, high=gain + 0.01, n=3)
    return put(healed, gain=read, coherence=coherence, coherence_high=math.nan)


def course(whole: RunRecord, gains: list[float], **changes: Any) -> list[RoundRecord]:
    """Folded rounds with these gains of trait, each 0.5 nats of KL further."""
    return [
        whole.rounds[0].model_copy(
            update={
                "round": i,
                "healed": summary_with(whole, gain, **changes),
                "kl_cumulative": 0.5 * (i + 1),
            }
        )
        for i, gain in enumerate(gains)
    ]


@pytest.mark.parametrize(
    ("gains", "changes", "said"),
    [
        ([0.1, 0.2, 0.15, 0.19], {}, "no further gain: +0.200"),
        ([0.1, 0.2, 0.15, 0.21], {}, ""),
        ([0.1, 0.2, 0.15], {}, ""),
        ([0.3, 0.2], {"patience": 1}, "no further gain"),
        ([0.3, 0.2, 0.1, 0.1], {"patience": 0}, ""),
        ([0.1, 0.2, 0.3, 0.4], {"kl_budget": 1.7}, "KL budget is spent: 2.00"),
        ([0.1, 0.2, 0.3], {"kl_budget": 1.7}, ""),
    ],
)
def test_the_loop_stops_when_gain_or_budget_end(
    finished: Path, gains: list[float], changes: dict[str, Any], said: str
) -> None:
    found = ends.stop_reason(course(read_run(finished), gains), RunConfig(**changes))
    assert said in found
    assert bool(said) == bool(found)


def test_the_headline_is_read_once_on_prompts_that_chose_nothing(finished: Path) -> None:
    record = read_run(finished)
    found = record.test
    assert found is not None and record.test_reason == ""
    assert found.round == (1 if record.best is None else record.best)
    base, healed = (
        read_record(round_folder(finished, number) / "test.json", Scores)
        for number in (-1, found.round)
    )
    for scores in (base, healed):
        assert [row.completion.prompt for row in scores.persona] == list(tiny.TEST[:3])
        assert scores.vignettes == scores.canary == ()
    gains = [b.logodds - a.logodds for a, b in zip(base.persona, healed.persona, strict=True)]
    assert found.gain == mean(gains) and found.prompts == 3
    # The state is the chosen round's: its answers to the same prompts are the same again.
    read = [mark for mark in record.stages if mark.name.startswith("test-")]
    assert [(mark.name, mark.round) for mark in read] == [
        ("test-base", -1), ("test-healed", found.round),
    ]  # fmt: skip
    assert read[-1] == record.stages[-1]


def test_other_test_prompts_change_the_headline_and_no_decision(
    finished: Path,
) -> None:
    other = start(finished.parent, "tested", test=("another a", "another b", "another c"))
    record = read_run(finished)
    for name in ("rounds", "best", "best_reason", "outcome"):
        # As text: what is NaN in both is the same.
        assert repr(getattr(other, name)) == repr(getattr(record, name)), name
    assert other.test is not None and record.test is not None
    assert other.test.gain != record.test.gain


def test_without_a_folded_round_or_test_prompts_nothing_is_tested_and_the_record_says_so(
    finished: Path,
) -> None:
    early = start(finished.parent, "early", until="check2")
    assert early.test is None and "no round was folded" in early.test_reason
    assert not (finished.parent / "early" / "base" / "test.json").exists()
    bare = start(finished.parent, "bare", test=())
    assert bare.test is None and "no test prompts" in bare.test_reason


def test_the_best_round_comes_with_its_reason(finished: Path) -> None:
    whole = read_run(finished)
    number, why = ends.best_round(course(whole, [0.1, 0.3, 0.2]), 0.95)
    assert number == 1
    assert "round 2 gained the most trait, +0.300" in why
    assert "KL spent 1.00 nats/token" in why and "its perplexity is" in why
    assert ends.best_round(course(whole, [-0.1]), 0.95)[0] is None
    assert "gained trait; at best −0.100" in ends.best_round(course(whole, [-0.1]), 0.95)[1]
    below = ends.best_round(course(whole, [0.1], coherence=0.5), 0.95)
    assert below[0] is None
    assert "coherence floor" in below[1]
    assert ends.best_round([], 0.95) == (None, "no round was folded")
    within = ends.best_round(course(whole, [0.1, 0.2, 0.3]), 0.95, 1.0)
    assert within[0] == 1
    assert "within the KL budget 1; 1 folded beyond the budget" in within[1]
    assert ends.best_round(course(whole, [0.1]), 0.95, 0.2)[0] is None
    unknown = [
        done.model_copy(
            update={
                "kl_cumulative": math.nan,
                "healed": put(done.healed, kl=math.nan),
            }
        )
        for done in course(whole, [0.1])
        if done.healed
    ]
    assert ends.best_round(unknown, 0.95, 1.0)[0] is None
    assert ends.best_round(unknown, 0.95)[0] == 0


def test_the_reference_is_the_student_before_the_round_or_the_base(finished: Path) -> None:
    first = {}
    for reference in ("prev", "base"):
        heal = {"reference": reference, "lr": 0.02, "epochs": 2}
        record = start(finished.parent, reference, patience=0, heal=heal)
        assert [row.outcome for row in record.rounds] == ["folded", "folded"]
        second = record.rounds[1].heal
        assert second is not None
        first[reference] = second.steps[0].divergence
    assert first["prev"] == pytest.approx(0, abs=1e-5)
    assert first["base"] > 1e-4


def test_a_heal_that_its_last_update_broke_is_rejected_without_held_out(finished: Path) -> None:
    broken = {"held_out": 0, "lr": 1e30, "rows": 64, "epochs": 1, "warmup": 0}
    record = start(finished.parent, "broken", heal=broken)
    (done,) = record.rounds
    assert done.outcome == "rejected" and done.healed is None
    assert "logits at gate 1 are not finite" in record.outcome


def test_every_round_starts_from_factors_of_its_own(finished: Path) -> None:
    # At this rate the factors stay near where they started.
    start(finished.parent, "slow", heal={"lr": 1e-4})
    run = finished.parent / "slow"
    downs = [
        next(iter(Adapter.load(run / f"round-0{n}" / "adapter").pairs.values())).down
        for n in (1, 2)
    ]
    cosine = torch.cosine_similarity(downs[0].flatten(), downs[1].flatten(), dim=0)
    assert abs(cosine) < 0.5


def test_the_coherence_floor_stops_the_loop_and_names_no_best(tmp_path: Path) -> None:
    # Whether a random model's answer mass falls is chance; with a broken heal some seed's does.
    heal = {"lr": 0.05, "epochs": 4}
    for seed in range(8):
        # Without doses the canary stands in, whose mass a floor is held against as it reads.
        settings = {"coherence_floor": 1.0, "heal": heal, "check": {"doses": ()}}
        record = start(tmp_path, f"seed-{seed}", seed=seed, **settings)
        healed = record.rounds[0].healed
        if healed and healed.coherence < 1.0:
            assert len(record.rounds) == 1
            assert "below" in record.outcome or "floor" in record.outcome
            assert record.best is None
            return
    pytest.fail("the tiny model's coherence did not fall at a learning rate of 0.05")


def test_more_contexts_than_bundled_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contexts are bundled"):
        start(tmp_path, vector={"contexts": 5_000})


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────────

DRIVER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import test_loop, steerheal.pipeline.stage_store as store, steerheal.report.page

runs, stages = Path(sys.argv[2]), int(sys.argv[3])
write = store.write_text

def run(victim, moment):
    seen = []
    def dying(path, text):
        name = path.parent.name
        if path.name == "stage.json":
            seen.append(name)
            if len(seen) == victim and moment == "saving":
                os.kill(os.getpid(), signal.SIGKILL)
        write(path, text)
    make = store.Store._make
    def making(self, home, work, save):
        def half():
            if len(seen) + 1 == victim and moment == "making":
                os.kill(os.getpid(), signal.SIGKILL)
            return work()
        make(self, home, half, save)
    store.write_text, store.Store._make = dying, making
    test_loop.start(runs, control=True)

# What is imported and digested before the first fork is there in every child.
test_loop.start(runs / "straight", control=True)
deaths = 0
for death in range(2 * stages):
    child = os.fork()
    if child == 0:
        # The first dies in its first stage. Every other finishes exactly one and dies in the next,
        # alternately while saving and while making it.
        run(min(death + 1, 2), "making" if death % 2 else "saving")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        break
    deaths += os.WTERMSIG(status) == signal.SIGKILL
store.sweep_unfinished(runs)
child = os.fork()
if child == 0:
    test_loop.start(runs, control=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(deaths)
"""


def test_a_run_killed_in_every_stage_ends_in_the_same_record(
    finished: Path, tmp_path: Path
) -> None:
    # A round's control is three stages, and what is tested has one more.
    stages = len(read_run(finished).stages) + 7
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(Path(__file__).parent), str(tmp_path), str(stages)],
        capture_output=True, text=True, timeout=400, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) >= stages
    assert signal.SIGKILL == 9
    killed, straight = timeless(tmp_path / "run"), timeless(tmp_path / "straight" / "run")
    assert killed["record"] == straight["record"]
    assert killed["files"].keys() == straight["files"].keys()
    for name, content in killed["files"].items():
        assert content == straight["files"][name], name
