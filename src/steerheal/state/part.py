"""What one forward of a state is made of: adapters at gates, vectors at doses, a system prompt."""

from dataclasses import dataclass, replace
from typing import Self

from steerheal.state.fold import Gated
from steerheal.state.vector import SteeringVector

Steered = tuple[SteeringVector, float]
"""A vector and its dose."""
QUOTED = 40
"""Letters of a system prompt that a name holds."""


@dataclass(frozen=True, eq=False)
class Part:
    """The model with what is on it."""

    history: tuple[Gated, ...] = ()
    """Adapters at their gates, in the order in which they were made; a gate may be negative."""
    vectors: tuple[Steered, ...] = ()
    system: str = ""
    """System prompt of everything that is asked through the chat template."""
    acts_from: int | None = None
    """Token of the answer from which the vectors act, from 0; None is everywhere."""
    called: str = ""
    """What people call the system prompt; no part of the key."""

    @property
    def made_of(self) -> list[object]:
        """Everything that makes it, in plain values."""
        adapters = [[item.adapter.key, item.gate] for item in self.history]
        vectors = [[vector.key, dose] for vector, dose in self.vectors]
        return [adapters, vectors, self.system, self.acts_from]

    def scaled(self, dose: float, whole: float) -> Self:
        """Every dose times dose/whole; one that equals `whole` is the dose itself."""
        return replace(
            self, vectors=tuple((vector, dose * (own / whole)) for vector, own in self.vectors)
        )

    @property
    def name(self) -> str:
        """What is on it, from the base up."""
        gates = [item.gate for item in self.history]
        said = [f"healed round {len(gates)}"] if gates else []
        if set(gates) - {1.0}:
            listed = ", ".join(f"{gate:g}" for gate in gates)
            said.append(f"gate {gates[0]:g}" if len(set(gates)) == 1 else f"gates {listed}")
        said += [f"steered {dose:g}" for _, dose in self.vectors]
        if self.acts_from is not None and self.vectors:
            said.append(f"from token {self.acts_from}")
        if self.system:
            short = self.system if len(self.system) <= QUOTED else f"{self.system[:QUOTED]}…"
            said.append(f"system prompt: {self.called or short}")
        return ", ".join(said) or "base"
