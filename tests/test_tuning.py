"""The search over settings: the same trials from the same seed, killed or not, and what is left."""

import importlib.util
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from reports import folded, reading
from steerheal.checks.steering import CHECK
from steerheal.config import RunConfig, merge, resolve
from steerheal.config.tuning import TuneSettings
from steerheal.console import Console
from steerheal.errors import UserError
from steerheal.records import Finding, Fisher, RankRow, Reading, RoundRecord, Summary
from steerheal.records.tuning import TuneRecord
from steerheal.store import read_record
from test_loop import TINY

import tiny

if importlib.util.find_spec("optuna") is None:
    pytest.skip("the extra tune is not installed", allow_module_level=True)

from steerheal.commands import tune as command
from steerheal.pipeline import tuning
from steerheal.pipeline.tuning import Plan, begun, chosen_config, tune

BANDS = {"0.2-0.6": (0.2, 0.6), "0.3-0.8": (0.3, 0.8)}
SETTINGS = TuneSettings(
    trials=8, startup=3, bands=tuple(BANDS), methods=("mean_difference", "pca"), ranks=(1, 2)
)
PERSONA = tiny.persona(prompts=tiny.prompts(test=tiny.TEST))
CONFIG = RunConfig.model_validate(TINY)


def plan(folder: Path, **changes: Any) -> Plan:
    settings = SETTINGS.model_copy(update=changes)
    return Plan(folder, CONFIG, settings, BANDS, PERSONA, "steerheal tune")


def searched(folder: Path, **changes: Any) -> TuneRecord:
    with begun(plan(folder, **changes)) as agreed:
        return tune(agreed, Console())


def round_of(config: RunConfig) -> RoundRecord:
    """A round whose readings follow from what was chosen: more passes, more trait, more damage."""
    epochs, rank = config.heal.epochs, config.heal.rank
    changes = {
        SETTINGS.trait: Reading(value=math.sqrt(epochs), low=0.1, high=3.0),
        SETTINGS.damage: Reading(value=epochs / rank, low=0.0, high=5.0),
    }
    made = folded(0)
    assert isinstance(made.healed, Summary)
    return made.model_copy(update={"healed": made.healed.model_copy(update={"changes": changes})})


def ranked_as(record: TuneRecord, *cosines: float, **absent: str) -> TuneRecord:
    """The record with directions of these cosines, method by method; all alike when not given."""
    settings = record.settings
    rows = tuple(
        RankRow(
            method=method, contrast="", wordings="", band=band, blocks=(1,), dose=0.25,
            read=Fisher(
                kl=0.1, cosine=reading(value), held_out=reading(value),
                per_root_kl=reading(value), optimum=reading(1.0),
            ),
        )
        for method, value in zip(settings.methods, cosines or (0.4,) * 9, strict=False)
        for band in settings.bands
        if method not in absent
    )  # fmt: skip
    return record.model_copy(update={"directions": rows, "absent": absent})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str | None]]:
    """Trials that cost nothing; the rounds that were asked for, and up to which check."""
    asked: list[tuple[int, str | None]] = []

    def made(_: object, number: int, config: RunConfig, *, until: str | None) -> RoundRecord:
        asked.append((number, until))
        return round_of(config)

    monkeypatch.setattr(tuning, "opened", lambda config: (tiny.chat(), config))
    monkeypatch.setattr(tuning._Bench, "_round", made)
    monkeypatch.setattr(tuning, "told_apart", lambda _, __, record, ___: ranked_as(record))
    return asked


def test_a_search_that_is_killed_goes_on_and_ends_as_one_that_was_not(
    quick: list[tuple[int, str | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = searched(tmp_path / "a" / "t")
    assert len(whole.trials) == 8 and whole.status == "finished" and whole.knee in whole.front
    again = searched(tmp_path / "b" / "t")
    assert again == whole
    assert len({str(one.chosen) for one in whole.trials}) > 4
    assert searched(tmp_path / "c" / "t", trials=3).trials == whole.trials[:3]

    def killed(_: object, number: int, config: RunConfig, *, until: str | None) -> RoundRecord:
        if number == 5 and until is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return round_of(config)

    if not (child := os.fork()):
        monkeypatch.setattr(tuning._Bench, "_round", killed)
        searched(tmp_path / "c" / "t")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    held = read_record(tmp_path / "c" / "t" / tuning.RECORD, TuneRecord)
    assert held.trials == whole.trials[:5] and held.status == "running"
    quick.clear()
    assert searched(tmp_path / "c" / "t") == whole
    assert {number for number, _ in quick} == {5, 6, 7}
    with pytest.raises(UserError, match="other settings"):
        searched(tmp_path / "c" / "t", startup=4)
    (tmp_path / "c" / "t" / tuning.JOURNAL).unlink()
    with pytest.raises(UserError, match="fewer trials"):
        searched(tmp_path / "c" / "t")


def test_what_the_proxies_speak_against_is_not_trained(
    quick: list[tuple[int, str | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(_: object, number: int, config: RunConfig, *, until: str | None) -> RoundRecord:
        quick.append((number, until))
        finding = Finding(check="check 1", outcome="too weak", words="no", advice="", tone="bad")
        return round_of(config).model_copy(update={"findings": (finding,)})

    def told_apart(_: object, __: object, record: TuneRecord, ___: object) -> TuneRecord:
        return ranked_as(record, 0.0, 0.1, 0.4, mean_difference="no contexts")

    monkeypatch.setattr(tuning, "told_apart", told_apart)
    monkeypatch.setattr(tuning._Bench, "_round", seen)
    methods = ("mean_difference", "pca", "trait_per_kl")
    record = searched(tmp_path / "t", methods=methods)
    reasons = {
        method: {one.reason for one in record.trials if one.chosen["vector.method"] == method}
        for method in methods
    }
    assert reasons["mean_difference"] == {"mean_difference gives no direction: no contexts"}
    (weak,) = reasons["pca"]
    assert "cosine is 0.10" in weak and "best one's 0.40" in weak
    assert reasons["trait_per_kl"] == {"check 1 saw: too weak"}
    assert {until for _, until in quick} == {"check1"}
    assert record.front == () and record.knee is None
    assert {rule.name for rule in CHECK.rules} > tuning.AGAINST


def test_the_knees_settings_are_a_file_that_a_run_takes(tmp_path: Path) -> None:
    chosen = {
        "vector.band": "0.2-0.6", "vector.method": "pca", "dose.coherence": 0.7,
        "heal.objective": "distill", "heal.rank": 2, "heal.epochs": 2,
    }  # fmt: skip
    own = RunConfig.model_validate(merge(resolve("quick").model_dump(), {"reverse": True}))
    found = chosen_config(own, chosen, BANDS)
    assert (found.vector.band, found.heal.rank, found.dose.start) == ((0.2, 0.6), 2, "auto")
    file = tmp_path / "knee.toml"
    command._write_settings(file, found)
    assert resolve("standard", file) == found


@pytest.mark.slow
def test_a_trial_is_a_run_of_one_round_that_reads_no_test_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "opened", lambda config: (tiny.chat(), config))
    record = searched(
        tmp_path / "t", trials=1, methods=("mean_difference",), passes=(1, 1), objectives=("sft",)
    )
    (trial,) = record.trials
    assert len(record.directions) == len(BANDS) and not record.absent
    assert trial.reason or (trial.trait is not None and trial.damage is not None)
    assert not [*tmp_path.rglob("test.json")]
