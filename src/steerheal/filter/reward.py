"""What a student's answers are rewarded for: the trait, and that the filter keeps them.

trait(y) is the mean over the training half of the paraphrases of the expected log-odds
(`measure.poles`); the held-out half is left to what reports.
"""

from dataclasses import dataclass

from steerheal.code import key_of
from steerheal.config import FilterSettings
from steerheal.filter.rules import judge
from steerheal.filter.scores import scored_by
from steerheal.measure.free import Answers
from steerheal.measure.poles import expected_logodds
from steerheal.models.model import ChatModel
from steerheal.personas import Persona
from steerheal.records import Calibration


@dataclass(frozen=True)
class TraitAndRules:
    """The trait and the filter's rules, with limits that the base's own text sets."""

    persona: Persona
    calibration: Calibration
    rules: FilterSettings

    @property
    def key(self) -> str:
        """Digest of the poles, the limits and the thresholds."""
        poles = self.persona.positive, self.persona.negative, *self.persona.pairs("train")
        return key_of(poles, self.calibration, self.rules)

    def trait(self, chat: ChatModel, answers: Answers) -> list[float]:
        """Every answer's expected log-odds, nats per token; NaN without tokens.

        Args:
            chat: The base, in no state.
            answers: What a state wrote.
        """
        pairs = [(pair.positive, pair.negative) for pair in self.persona.pairs("train")]
        return expected_logodds(chat, answers, pairs).mean(1).tolist()

    def kept(self, chat: ChatModel, answers: Answers) -> list[bool]:
        """Whether the filter keeps each.

        Args:
            chat: The base, in no state.
            answers: What a state wrote.
        """
        said = answers.completions
        scored = scored_by(
            chat, said, self.persona, answers.states,
            writer=answers.writer, logodds=self.rules.trait > 0,
        )  # fmt: skip
        found = judge(said, scored, self.persona, calibration=self.calibration, settings=self.rules)
        return [verdict.kept for verdict in found]
