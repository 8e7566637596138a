"""The one door to a state: opens the model in one or several states, and undoes everything.

Adapters that all parts of all states have at the same gate are folded as any history is; the others
run beside the weights, at a gate per row. Every vector is hooked in once, at a dose per row.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerheal.errors import UserError
from steerheal.models.hooks import Dosed
from steerheal.models.model import ChatModel
from steerheal.models.rows import Acting, Line
from steerheal.models.unhooked import Unhooked
from steerheal.state.adapter import Adapter
from steerheal.state.fold import Gated, attached, folded
from steerheal.state.part import Part
from steerheal.state.unhooked import unhooked
from steerheal.state.vector import SteeringVector

T = TypeVar("T")
Logits = Callable[[Tensor], Tensor]
"""The model's own logits of final hidden states."""


class Entered(Protocol):
    """What the door needs of a state."""

    @property
    def leaves(self) -> Sequence[Part]: ...
    @property
    def formula(self) -> tuple[object, ...]: ...
    @property
    def name(self) -> str: ...
    @property
    def dose(self) -> float: ...
    def combined(self, hidden: Iterator[Tensor], /) -> Tensor: ...
    def logits(self, states: Tensor, head: Logits, /) -> Tensor: ...


@dataclass(frozen=True)
class Plan:
    """What is hooked in for some states, and what of it each part of each state gets."""

    parts: tuple[tuple[Part, ...], ...]
    """Per state, the leaves that differ, each of which takes a row of the forward."""
    places: tuple[int, ...]
    """Per leaf of a state, which of its parts it is."""
    common: tuple[Gated, ...]
    """Adapters that every part has alike."""
    apart: tuple[Adapter, ...]
    vectors: tuple[SteeringVector, ...]

    @property
    def alone(self) -> bool:
        """Whether there is one plain state, which is the same at every position."""
        every = [part for state in self.parts for part in state]
        return len(every) == 1 and every[0].acts_from is None

    @cached_property
    def doses(self) -> Float[Tensor, "S P V"]:
        """Coefficients per state, part and vector."""
        return self._table([[_doses(part, self.vectors) for part in of] for of in self.parts])

    @cached_property
    def gates(self) -> Float[Tensor, "S P A"]:
        """Gates per state, part and adapter that is not common."""
        return self._table([[_gates(part, self.apart) for part in of] for of in self.parts])

    def _table(self, numbers: list[list[list[float]]]) -> Float[Tensor, "S P X"]:
        shape = (len(numbers), len(numbers[0]), len(numbers[0][0]))
        return torch.tensor(numbers, dtype=torch.float64).view(shape)


@dataclass(frozen=True)
class Opened(ChatModel):
    """A chat model inside a state's door: it reads, writes and scores as the state does."""

    states: tuple[Entered, ...]
    """Which it is in; rows name them by their place here."""
    plan: Plan
    pushes: tuple[Dosed, ...]
    """The dose of every vector of the plan."""
    branches: Dosed | None
    """The gates of its adapters that are apart."""

    @property
    def entered(self) -> int:
        """As many as there are."""
        return len(self.states)

    @contextmanager
    def resting(self, state: int = 0) -> Iterator[None]:
        """For code that runs the network by itself: it meets this state there.

        Raises:
            UserError: the state is more than adapters and vectors.
        """
        part, *others = self.plan.parts[state]
        if others or part.system or part.acts_from is not None:
            raise UserError(
                f"{self.states[state].name} cannot be read by code that runs the network itself: "
                "it takes adapters and vectors, no system prompts, starts or formulas."
            )
        with ExitStack() as stack:
            for handle, dose in zip(self.pushes, self.plan.doses[state, 0].tolist(), strict=True):
                stack.enter_context(handle.at(dose))
            if self.branches is not None:
                gates = self.plan.gates[state].float().to(self.device)
                stack.enter_context(self.branches.at(gates))
            yield

    @property
    def parts(self) -> int:
        """Plain states per state that differ."""
        return len(self.plan.parts[0])

    def systems(self, state: int = 0) -> tuple[str, ...]:
        """Of every part."""
        return tuple(part.system for part in self.plan.parts[state])

    def dose(self, state: int = 0) -> float:
        """The state's own."""
        return self.states[state].dose

    def unhooked(self, state: int = 0) -> Unhooked:
        """As biases and one adapter.

        Raises:
            UserError: the state is more than that.
        """
        return unhooked(self.plan.parts[state], self.states[state].formula, self.states[state].name)

    def acting(self, lines: Sequence[Line]) -> Acting | None:
        """Per row of a forward, first parts first; None where every row gets the same."""
        if not self.plan.vectors and not self.plan.apart:
            return None
        owners = torch.tensor([line.state for line in lines])
        since = [
            0 if plain.acts_from is None else line.begins[part] + plain.acts_from - 1
            for part in range(self.parts)
            for line in lines
            for plain in [self.plan.parts[line.state][part]]
        ]
        doses, gates = (
            table[owners].transpose(0, 1).flatten(0, 1)
            for table in (self.plan.doses, self.plan.gates)
        )
        return Acting(doses, gates, torch.tensor(since))

    def hidden(
        self, ids: Int[Tensor, "N T"], acting: Acting | None = None, **inputs: Any
    ) -> Float[Tensor, "N T D"]:
        """Final hidden states of a forward's rows, each in its state.

        Without `acting` all rows are in the only part of the only state.
        """
        if acting is None:
            alike = self.plan.alone or not (self.pushes or self.branches)
            assert alike, "rows of several states must say which they are in"
            return super().hidden(ids, **inputs)
        doses = acting.doses.float().to(self.device)
        if acting.since.any():
            acts = _positions(ids, inputs) >= acting.since.to(self.device)[:, None]
            columns = [doses[:, i, None] * acts for i in range(len(self.pushes))]
        else:
            columns = list(doses.unbind(1))
        with ExitStack() as stack:
            for handle, column in zip(self.pushes, columns, strict=True):
                stack.enter_context(handle.at(column))
            if self.branches is not None:
                stack.enter_context(self.branches.at(acting.gates.float().to(self.device)))
            return super().hidden(ids, **inputs)

    def combined(self, hidden: Float[Tensor, "N *T D"]) -> Float[Tensor, "B *T W"]:
        """The parts of every row made one, as its state's formula says."""
        found = hidden.chunk(self.parts)
        return self.states[0].combined(found[place] for place in self.plan.places)

    def logits(self, hidden: Float[Tensor, "*N W"]) -> Float[Tensor, "*N V"]:
        """As the state's formula says."""
        return self.states[0].logits(hidden, super().logits)


@contextmanager
def opened(chat: ChatModel, states: Sequence[Entered]) -> Iterator[Opened]:
    """The model in these states, undone at the end and when entering fails.

    Raises:
        UserError: states of different formulas, or one that does not fit the model.
    """
    if isinstance(chat, Opened):
        raise UserError(
            f"{chat.name} is in a state already: {chat.states[0].name}. Build the whole state "
            "first, and enter that."
        )
    if len({state.formula for state in states}) != 1:
        raise UserError(
            "States can share a batch where their logits are made the same way: "
            f"{'; '.join(state.name for state in states)}."
        )
    plan = planned(states)
    rest = plan.doses[0, 0].tolist() if plan.alone else [0.0] * len(plan.vectors)
    with ExitStack() as stack:
        stack.enter_context(folded(chat, plan.common))
        branches = None
        if plan.apart:
            sides = [Gated(adapter) for adapter in plan.apart]
            branches = stack.enter_context(attached(chat, sides, 0.0))
        pushes = [
            stack.enter_context(vector.applied(chat, dose))
            for vector, dose in zip(plan.vectors, rest, strict=True)
        ]
        own = {field.name: getattr(chat, field.name) for field in fields(chat)}
        yield Opened(
            **own, states=tuple(states), plan=plan, pushes=tuple(pushes), branches=branches
        )


def planned(states: Sequence[Entered]) -> Plan:
    """What the states have in common, and what is apart; equal leaves are one part."""
    leaves = [state.leaves for state in states]
    alike = [[of[i].made_of for of in leaves] for i in range(len(leaves[0]))]
    firsts = [i for i, kind in enumerate(alike) if alike.index(kind) == i]
    parts = tuple(tuple(of[i] for i in firsts) for of in leaves)
    every = [part for state in parts for part in state]
    adapters = _distinct([item.adapter for part in every for item in part.history])
    shared = [len({_gates(part, [adapter])[0] for part in every}) == 1 for adapter in adapters]
    return Plan(
        parts=parts,
        places=tuple(firsts.index(alike.index(kind)) for kind in alike),
        common=tuple(
            Gated(adapter, *_gates(every[0], [adapter]))
            for adapter, same in zip(adapters, shared, strict=True)
            if same
        ),
        apart=tuple(adapter for adapter, same in zip(adapters, shared, strict=True) if not same),
        vectors=_distinct([vector for part in every for vector, _ in part.vectors]),
    )


def _gates(part: Part, adapters: Sequence[Adapter]) -> list[float]:
    return [
        sum(item.gate for item in part.history if item.adapter is adapter) for adapter in adapters
    ]


def _doses(part: Part, vectors: Sequence[SteeringVector]) -> list[float]:
    return [sum(dose for own, dose in part.vectors if own is vector) for vector in vectors]


def _distinct(items: Sequence[T]) -> tuple[T, ...]:
    """The same objects once each, in order."""
    return tuple({id(item): item for item in items}.values())


def _positions(ids: Tensor, inputs: dict[str, Any]) -> Int[Tensor, "N T"]:
    """Where the tokens of a forward stand in their rows."""
    given = inputs.get("position_ids")
    if given is not None:
        return given
    cache = inputs.get("past_key_values")
    start = 0 if cache is None else cache.get_seq_length()
    return (start + torch.arange(ids.shape[1], device=ids.device)).expand(len(ids), -1)
