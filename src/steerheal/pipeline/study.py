"""Which settings are tried next; the only module that knows Optuna.

The search is a journal on disk that grows line by line, so that a killed one goes on where it was.
A trial's draw follows from the seed, its number and the trials before it, and from nothing else:
the same seed gives the same trials, killed or not.

Source: TPE for several objectives, Ozaki et al. 2022, https://doi.org/10.1613/jair.1.13188.
"""

from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from steerheal import streams
from steerheal.config.tuning import TuneSettings
from steerheal.records.tuning import Trial

JOURNAL = "study.journal"
HELD = "trial"
"""What the journal calls our record of a trial."""


class Study:
    """A search on disk."""

    def __init__(self, folder: Path, settings: TuneSettings, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._settings, self._seed = settings, seed
        self._space = space(settings)
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
            study_name="tune",
            directions=["maximize", "maximize"],
            load_if_exists=True,
        )
        self._open: optuna.trial.Trial | None = None

    def trials(self) -> list[Trial]:
        """Every trial that has ended."""
        return [
            Trial.model_validate(one.user_attrs[HELD])
            for one in self._study.get_trials(deepcopy=False)
            if one.state.is_finished()
        ]

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """Number and choice of the next trial: one that was begun, else a new one; None at the end.

        What was chosen goes by its name in a run's settings.
        """
        known = self._study.get_trials(deepcopy=False)
        begun = next((one for one in known if one.state == TrialState.RUNNING), None)
        number = len(known) if begun is None else begun.number
        if number >= self._settings.trials:
            return None
        self._study.sampler = optuna.samplers.TPESampler(
            seed=(self._seed * streams.PER_SEED + number) % 2**32,
            n_startup_trials=self._settings.startup,
        )
        if begun is None:
            self._open = self._study.ask()
        else:
            self._open = optuna.trial.Trial(self._study, begun._trial_id)
        return number, {name: self._drawn(name, kind) for name, kind in self._space.items()}

    def _drawn(self, name: str, kind: BaseDistribution) -> Any:
        assert self._open is not None
        match kind:
            case CategoricalDistribution():
                return self._open.suggest_categorical(name, kind.choices)
            case FloatDistribution():
                return round(self._open.suggest_float(name, kind.low, kind.high), 2)
            case IntDistribution():
                return self._open.suggest_int(name, kind.low, kind.high)
        raise AssertionError(f"{kind} is not among the kinds of the space")

    def tell(self, trial: Trial) -> None:
        """Ends the trial that was asked for last."""
        assert self._open is not None
        self._open.set_user_attr(HELD, trial.model_dump(mode="json"))
        if trial.point is None:
            self._study.tell(self._open, state=TrialState.PRUNED)
        else:
            self._study.tell(self._open, trial.point)
        self._open = None


def space(settings: TuneSettings) -> dict[str, BaseDistribution]:
    """What is chosen from, by its name in a run's settings."""
    return {
        "vector.band": CategoricalDistribution(settings.bands),
        "vector.method": CategoricalDistribution(settings.methods),
        "dose.coherence": FloatDistribution(*settings.shares),
        "heal.objective": CategoricalDistribution(settings.objectives),
        "heal.rank": CategoricalDistribution(settings.ranks),
        "heal.epochs": IntDistribution(*settings.passes),
    }
