"""A loaded chat model: its decoder blocks, its output head and its ends of turn.

Knows nothing of steering, nor of where the model came from.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import Cache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from steerheal.config import Band
from steerheal.errors import UserError
from steerheal.models.ends import Ends
from steerheal.models.rows import Acting, Line
from steerheal.models.template import Template
from steerheal.models.unhooked import Unhooked


@dataclass(frozen=True)
class ChatModel:
    """A causal language model with a chat template, in evaluation mode, gradients off."""

    net: PreTrainedModel
    """The transformers model; the only object that stages change, and only inside contexts."""
    tokenizer: PreTrainedTokenizerBase
    name: str
    """What the user would call it; goes into records and adapters."""
    fingerprint: str
    """Digest of the configuration and the weights, part of every stage's key."""
    system_role: bool
    """False: the template has no system role, a system prompt opens the user turn instead."""
    template: Template
    """The chat template with the date and the variables of this run."""
    ends: Ends
    """Which tokens end an assistant's turn."""
    origin: str
    """Which weights these are, where the name does not say so; else empty."""

    @property
    def key(self) -> str:
        """What stands for it among a stage's inputs."""
        return self.fingerprint

    @property
    def decoder(self) -> nn.Module:
        """The text decoder: token ids in, last hidden state (after the final norm) out."""
        return self.net.get_decoder()

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, in order."""
        return find_blocks(self.net)

    @property
    def text_config(self) -> PreTrainedConfig:
        return self.net.config.get_text_config(decoder=True)

    @property
    def device(self) -> torch.device:
        return self.net.device

    @property
    def quantised(self) -> bool:
        """Whether its linear layers hold packed weights, which nothing can be written into."""
        return getattr(self.net.config, "quantization_config", None) is not None

    @property
    def sharded(self) -> bool:
        """Whether several processes hold its blocks, a part of every weight each."""
        return isinstance(self.blocks[0], FSDPModule)

    @property
    def writable(self) -> bool:
        """Whether something can be written into its linear layers' weights."""
        return not (self.quantised or self.sharded)

    @property
    def entered(self) -> int:
        """How many states it is in at once; rows say which of them is theirs."""
        return 1

    def resting(self, state: int = 0) -> AbstractContextManager[None]:
        """For code that runs the network by itself: it meets this state there."""
        assert state == 0, "only a state that was entered has neighbours"
        return nullcontext()

    @property
    def parts(self) -> int:
        """Rows of a forward that one row of a batch takes: one, unless a state needs several."""
        return 1

    def systems(self, state: int = 0) -> tuple[str, ...]:
        """The system prompt that each part of an entered state reads; the bare model has none."""
        assert state == 0, "only a state that was entered has neighbours"
        return ("",)

    def dose(self, state: int = 0) -> float:
        """The dose that an entered state is steered at; 0 for the bare model."""
        assert state == 0, "only a state that was entered has neighbours"
        return 0.0

    def unhooked(self, state: int = 0) -> Unhooked:
        """An entered state as files hold it; the bare model has nothing on it."""
        assert state == 0, "only a state that was entered has neighbours"
        return Unhooked()

    def acting(self, lines: Sequence[Line]) -> Acting | None:
        """What acts on the rows of a forward over the lines, parts included; None on all alike."""
        assert not any(line.state for line in lines), "only states that were entered are several"
        return None

    def hidden(
        self, ids: Int[Tensor, "N T"], acting: Acting | None = None, **inputs: Any
    ) -> Float[Tensor, "N T D"]:
        """Final hidden states of the rows of a forward, after the decoder's last norm.

        Raises:
            UserError: the row, what is cached of it included, is longer than the model's positions.
        """
        assert acting is None, "nothing acts on the bare model"
        if ids.shape[1] > 1:  # a step of decoding has its room from the start
            self.refuse_longer(_reach(ids, **inputs))
        return self.decoder(input_ids=ids, **inputs).last_hidden_state

    def combined(self, hidden: Float[Tensor, "N *T D"]) -> Float[Tensor, "B *T W"]:
        """The rows of the batch from those of a forward: what `logits` takes."""
        return hidden

    def logits(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """Float32 logits of final hidden states, soft-capped where the model does so."""
        head = cast(nn.Module, self.net.get_output_embeddings())
        logits = head(hidden).float()
        cap = getattr(self.text_config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end a turn: the generation config's, the tokenizer's, the template's."""
        return self.ends.stops

    def end_of_turn(self) -> int:
        """The id that the template prints after an assistant message."""
        return self.ends.marker

    def positions(self) -> int | None:
        """Tokens that the model can hold at once; None where its configuration sets no limit.

        A window that slides is no limit. Rotary positions that are stretched reach further than
        those which the model was first trained on.
        """
        config = self.text_config
        most = getattr(config, "max_position_embeddings", None)
        rope = getattr(config, "rope_parameters", None) or {}
        stretch = rope.get("factor") if isinstance(rope, dict) else None
        if not isinstance(most, int) or most <= 0:
            return None
        if isinstance(stretch, int | float):
            return max(most, int(stretch * rope.get("original_max_position_embeddings", most)))
        return most

    def refuse_longer(self, tokens: int, *, written: int = 0) -> None:
        """Refuses what has no room in the model's positions.

        Args:
            tokens: Of the longest row to be read.
            written: Tokens to be written after it, at most.

        Raises:
            UserError: both together are more than the model's positions.
        """
        most = self.positions()
        if most is not None and tokens + written > most:
            more = f" and up to {written} are to be written after it" if written else ""
            advice = " or have fewer tokens written" if written else ""
            raise UserError(
                f"A text of {tokens} tokens is to be read{more}, but {self.name} has {most} "
                f"positions. Shorten the text{advice}, or use a model with more positions."
            )


def _reach(
    ids: Tensor,
    position_ids: Tensor | None = None,
    past_key_values: Cache | None = None,
    **_: object,
) -> int:
    """Positions that a read takes up; padding among what is cached takes none."""
    if position_ids is not None:
        return int(position_ids.max()) + 1
    return ids.shape[1] + (0 if past_key_values is None else past_key_values.get_seq_length())


def find_blocks(net: PreTrainedModel) -> nn.ModuleList:
    """The decoder's list of blocks: its only module list as long as the model is deep.

    Raises:
        UserError: none or several such lists.
    """
    depth = net.config.get_text_config(decoder=True).num_hidden_layers
    lists = [
        module
        for module in net.get_decoder().children()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if len(lists) != 1:
        raise UserError(
            f"Cannot find the decoder blocks of {type(net).__name__}: {len(lists)} module lists "
            f"of length {depth}. A decoder-only transformers model is needed."
        )
    return lists[0]


def band_layers(depth: int, band: Band) -> list[int]:
    """Block indices whose fraction of depth lies in the band; the middle one if none does.

    Block i of n lies at (i + ½)/n.
    """
    inside = [i for i in range(depth) if band[0] <= (i + 0.5) / depth <= band[1]]
    return inside or [min(depth - 1, int(depth * (band[0] + band[1]) / 2))]
