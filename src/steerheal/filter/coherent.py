"""Which texts are coherent: the filter's rules, less those on what a text is about."""

from collections.abc import Sequence
from dataclasses import dataclass

from steerheal.code import key_of
from steerheal.config import FilterSettings
from steerheal.filter.features import Scored
from steerheal.filter.rules import BASE_LIKE, NARRATES, REFUSES, THOUGHT, judge
from steerheal.personas import Persona
from steerheal.records import Calibration, PersonaRow, Verdict

APART = frozenset({THOUGHT, NARRATES, REFUSES, BASE_LIKE})
"""Reasons to drop a text that say nothing against its coherence."""


def broken(verdict: Verdict) -> tuple[str, ...]:
    """Why a text is not coherent; nothing for one that is."""
    return tuple(reason for reason in verdict.reasons if reason not in APART)


@dataclass(frozen=True)
class CoherenceRules:
    """The rules with limits that the base's own text sets on one model."""

    persona: Persona
    calibration: Calibration
    settings: FilterSettings

    @property
    def key(self) -> str:
        """Digest of the limits and of whose poles are compared with."""
        poles = self.persona.positive, self.persona.negative
        return key_of(poles, self.calibration, self.settings)

    def broken(self, rows: Sequence[PersonaRow]) -> list[tuple[str, ...]]:
        """Why each answer is not coherent; nothing for one that is.

        Args:
            rows: Answers with what the base makes of their tokens.
        """
        scored = [Scored(row.logprobs, row.entropies, logodds=row.logodds) for row in rows]
        verdicts = judge(
            [row.completion for row in rows], scored, self.persona,
            calibration=self.calibration, settings=self.settings,
        )  # fmt: skip
        return [broken(verdict) for verdict in verdicts]
