"""The steering vector: v_ℓ = mean over contexts x of (h⁺_ℓ(x) − h⁻_ℓ(x)), at the assistant tag.

h_ℓ is the residual stream after decoder block ℓ at the last token of the chat-templated prompt
with its generation prompt. The scale is raw: dose 1 adds one whole difference between the poles.
Foldable only by distillation: the vector itself is a bias on the blocks' outputs.

Source: mean difference as in Contrastive Activation Addition (Panickssery et al. 2023,
arXiv:2312.06681), read at the assistant tag.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steerheal.config import VectorSettings
from steerheal.errors import UserError
from steerheal.models.batch import by_length, shrinking, token_budget
from steerheal.models.chat import prompt_ids
from steerheal.models.hooks import Dosed, adding, recording
from steerheal.models.load import ChatModel, band_layers
from steerheal.models.score import hidden_after_shared
from steerheal.steer.persona import Persona

FORMAT = "steerheal-vector-1"


@dataclass(frozen=True)
class SteeringVector:
    """One direction per steered block; a value with arithmetic."""

    layers: dict[int, Float[Tensor, " D"]]
    """Direction in float32 on the CPU, by block index."""

    def __add__(self, other: Self) -> Self:
        self._same_layers(other)
        return type(self)({i: v + other.layers[i] for i, v in self.layers.items()})

    def __sub__(self, other: Self) -> Self:
        return self + other * -1.0

    def __mul__(self, factor: float) -> Self:
        return type(self)({i: v * factor for i, v in self.layers.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Self:
        return self * -1.0

    def _same_layers(self, other: Self) -> None:
        if self.layers.keys() != other.layers.keys():
            raise UserError(
                f"Vectors on different blocks cannot be combined: {sorted(self.layers)} and "
                f"{sorted(other.layers)}."
            )

    def norms(self) -> dict[int, float]:
        """Euclidean norm per block."""
        return {i: v.norm().item() for i, v in self.layers.items()}

    def cosine(self, other: Self) -> float:
        """Cosine with another vector, mean over blocks; NaN where one is zero."""
        self._same_layers(other)
        pairs = [(v, other.layers[i]) for i, v in self.layers.items()]
        cosines = [(a @ b / (a.norm() * b.norm())).item() for a, b in pairs]
        return sum(cosines) / len(cosines)

    @contextmanager
    def applied(self, chat: ChatModel, dose: float | Tensor = 1.0) -> Iterator[Dosed]:
        """The model steered by dose·v inside the context; a tensor doses each row on its own.

        Raises:
            UserError: the vector does not fit the model.
        """
        width, depth = chat.text_config.hidden_size, len(chat.blocks)
        for layer, vector in self.layers.items():
            if layer >= depth or vector.shape != (width,):
                raise UserError(
                    f"The vector does not fit {chat.name}: block {layer} of {depth}, width "
                    f"{vector.shape[0]} for a model of width {width}."
                )
        with adding(chat, self.layers, dose) as dosed:
            yield dosed

    def save(self, path: Path) -> None:
        """Writes the vector as safetensors."""
        tensors = {f"block.{i}": v.contiguous() for i, v in self.layers.items()}
        save_file(tensors, path, metadata={"format": FORMAT})

    @classmethod
    def load(cls, path: Path) -> Self:
        """A vector from safetensors.

        Raises:
            UserError: unreadable, damaged, or not a steering vector.
        """
        try:
            with safe_open(path, framework="pt") as file:
                found = (file.metadata() or {}).get("format")
                if found != FORMAT:
                    raise UserError(f"{path} is not a steering vector (format {found!r}).")
                names = file.keys()
                layers = {int(name.split(".")[1]): file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise UserError(f"Cannot read vector {path}: {error}.") from error
        return cls(dict(sorted(layers.items())))


@torch.no_grad()
def extract(
    chat: ChatModel,
    persona: Persona,
    contexts: Sequence[str],
    settings: VectorSettings,
    progress: Callable[[int], None] = lambda _: None,
) -> SteeringVector:
    """The mean difference of the persona's poles over the contexts.

    Raises:
        UserError: no contexts.
    """
    if not contexts:
        raise UserError("A vector needs at least one context.")
    layers = band_layers(len(chat.blocks), settings.band)
    low = persona.negative if settings.contrast == "negative" else persona.neutral
    sums = {layer: torch.zeros(chat.text_config.hidden_size) for layer in layers}
    for sign, system in ((1.0, persona.positive), (-1.0, low)):
        rows = [prompt_ids(chat, context, system=system) for context in contexts]
        for states in _tag_states(chat, rows, layers, progress):
            for layer in layers:
                sums[layer] += sign * states[layer].sum(0)
    return SteeringVector({layer: total / len(contexts) for layer, total in sums.items()})


def _tag_states(
    chat: ChatModel,
    rows: Sequence[Sequence[int]],
    layers: list[int],
    progress: Callable[[int], None],
) -> Iterator[dict[int, Float[Tensor, "B D"]]]:
    """Float32 residual states at each row's last token, batch by batch."""
    found: list[dict[int, Tensor]] = []

    def work(batch: list[int]) -> None:
        with recording(chat, layers) as seen:
            _, skipped = hidden_after_shared(chat, [rows[i] for i in batch])
        last = torch.tensor([len(rows[i]) - 1 - skipped for i in batch], device=chat.device)
        at = torch.arange(len(batch), device=chat.device)
        found.append({layer: seen[layer][at, last].float().cpu() for layer in layers})
        progress(len(batch))

    for batch in by_length([len(row) for row in rows], token_budget(chat.device)):
        shrinking(batch, work)
        yield from found
        found.clear()
