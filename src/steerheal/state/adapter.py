"""A trained adapter as a value: factors on linear layers, saved and read in PEFT's own format.

y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ, whatever the adapter was while it trained.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self, cast

from jaxtyping import Float
from peft import LoraConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from steerheal.models.model import ChatModel
from steerheal.models.wide import wide
from steerheal.state.factors import DOWN, PREFIX, UP, Pair, read_factors

README = """# LoRA adapter for {base}

It was trained on {trained_on}, and belongs on these weights. Those that {base} names differ from
them, by what quantising left: there the adapter does about the same, not exactly.
"""


@dataclass(frozen=True)
class Adapter:
    """A trained adapter: factors by the full name of the layer they add to, and their scale."""

    pairs: dict[str, Pair]
    scale: float
    rank: int
    base: str = ""
    """Name of the model that it was trained on, where that is known."""
    trained_on: str = ""
    """The weights in words, where they are not those of that name."""

    @cached_property
    def key(self) -> str:
        """Digest of the factors and their scale, whatever they were read from."""
        found = hashlib.sha256(f"{self.scale!r} {self.rank}".encode())
        for name, pair in sorted(self.pairs.items()):
            found.update(name.encode())
            for factor in (pair.down, pair.up):
                found.update(factor.float().contiguous().cpu().numpy().tobytes())
        return found.hexdigest()[:20]

    def trained_by(self, chat: ChatModel) -> Self:
        """The adapter with the name of the model whose weights it was trained on."""
        return replace(self, base=chat.name, trained_on=chat.origin)

    def delta(self, name: str) -> Float[Tensor, "O I"]:
        """s·B·A in float32: what the adapter adds to the layer's weight at gate 1."""
        pair = self.pairs[name]
        return self.scale * (pair.up.float() @ pair.down.float())

    def share(self, name: str) -> float:
        """‖B·A‖ / (‖B‖·‖A‖) in Frobenius norms: 0 is a layer that the adapter leaves alone.

        Factors that cancel, as an untrained PiSSA's do, leave only what rounding leaves.
        """
        up, down = wide(self.pairs[name].up), wide(self.pairs[name].down)
        sizes = (up.norm() * down.norm()).item()
        # ‖BA‖² = tr(BᵀB·AAᵀ) needs R × R numbers instead of the whole difference.
        inner = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt().item()
        return inner / sizes if sizes else 0.0

    def named_otherwise(self, name: str) -> str:
        """A sentence for whoever puts it on a model of another name; empty where it is the same."""
        own, other = (Path(said).name.lower() for said in (self.base, name))
        if not own or own == other:
            return ""
        return (
            f"The adapter says that it belongs to {self.base}, and the model is {name}. Its layers "
            "fit, but it means something only on the weights that it was trained on."
        )

    def save(self, folder: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors, as PEFT does.

        What it was trained on goes into a README.md, where the base's name does not say it.

        Args:
            folder: Where to; made when absent.
        """
        folder.mkdir(parents=True, exist_ok=True)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=cast(int, self.scale * self.rank),
            target_modules=sorted(self.pairs),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            inference_mode=True,
            base_model_name_or_path=self.base,
        )
        tensors = {}
        for name, pair in self.pairs.items():
            tensors[PREFIX + name + DOWN] = pair.down.contiguous()
            tensors[PREFIX + name + UP] = pair.up.contiguous()
        save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        config.save_pretrained(str(folder))
        if self.trained_on:
            text = README.format(base=self.base, trained_on=self.trained_on)
            (folder / "README.md").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """An adapter from a PEFT folder.

        Raises:
            UserError: unreadable, damaged, or of a kind that cannot be folded.
        """
        return cls(*read_factors(folder))
