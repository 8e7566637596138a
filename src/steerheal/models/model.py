"""A loaded chat model: its decoder blocks, its output head and its ends of turn.

Knows nothing of steering, nor of where the model came from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from steerheal.config import Band
from steerheal.errors import UserError
from steerheal.models.rows import Acting, Line


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

    def acting(self, lines: Sequence[Line]) -> Acting | None:
        """What acts on the rows of a forward over the lines, parts included; None on all alike."""
        assert not any(line.state for line in lines), "only states that were entered are several"
        return None

    def hidden(
        self, ids: Int[Tensor, "N T"], acting: Acting | None = None, **inputs: Any
    ) -> Float[Tensor, "N T D"]:
        """Final hidden states of the rows of a forward, after the decoder's last norm."""
        assert acting is None, "nothing acts on the bare model"
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
        ends = getattr(self.net.generation_config, "eos_token_id", None)
        ids = list(ends) if isinstance(ends, list | tuple) else [ends]
        ids += [self.tokenizer.eos_token_id, self.end_of_turn()]
        return tuple(sorted({i for i in ids if i is not None}))

    def end_of_turn(self) -> int:
        """The id that the template prints right after an assistant message."""
        sentinel = "steerheal-sentinel"
        text = cast(
            str,
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": "_"}, {"role": "assistant", "content": sentinel}],
                tokenize=False,
            ),
        )
        after = self.tokenizer.encode(text.rpartition(sentinel)[2], add_special_tokens=False)
        special = set(self.tokenizer.all_special_ids)
        found = next((i for i in after if i in special), self.tokenizer.eos_token_id)
        if found is None:
            raise UserError(
                f"{self.name}: no token ends an assistant turn. Give the tokenizer an eos_token."
            )
        return cast(int, found)


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
