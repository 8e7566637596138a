"""What a run's record says of its surroundings: machine, versions, and what a reader must know."""

import os
import platform
from importlib.metadata import version

import torch

from steerheal.code import key_of
from steerheal.config import HealSettings, RunConfig
from steerheal.heal.reach import unreached
from steerheal.measure import instruments
from steerheal.models.cache import token_bytes
from steerheal.models.chat import prompt_notes
from steerheal.models.engines.engine import find
from steerheal.models.model import ChatModel
from steerheal.models.quantise import parameters_of
from steerheal.models.reordered import reordered_in
from steerheal.models.shard import elsewhere
from steerheal.models.size import Size
from steerheal.personas import Persona
from steerheal.pipeline.stages import all_of_it

PACKAGES = ("steerheal", "torch", "transformers", "peft", "safetensors", "numpy", "scipy")


def environment(chat: ChatModel, config: RunConfig) -> dict[str, str]:
    """What the run's numbers depend on beside its settings."""
    return {
        "model": chat.name,
        "fingerprint": chat.fingerprint,
        **({"thinking": mode} if (mode := chat.template.thinking()) else {}),
        "code": all_of_it(),
        "texts": key_of(instruments.texts(config.measure)),
        "architecture": type(chat.net).__name__,
        "device": str(chat.device),
        "dtype": str(chat.net.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        **{name: version(name) for name in (*PACKAGES, *find(config.sampling.engine).packages)},
    }


def size_of(chat: ChatModel) -> Size:
    """How large a model is; what it shares between parts counts once."""
    counts = [(parameters_of(weight), weight.numel()) for weight in chat.net.parameters()]
    parameters, packed = sum(n for n, _ in counts), sum(n for n, held in counts if n != held)
    hidden = chat.text_config.hidden_size
    others = (token_bytes(chat), packed, *elsewhere(chat), reordered_in(chat.net))
    return Size(parameters, len(chat.blocks), hidden, *others)


BARRIERS_OWN = (
    "aggregate", "reference", "lam", "tau", "lam_power", "barrier_text", "off_label",
)  # fmt: skip
"""Settings of a heal that do nothing without a barrier."""


def notes(chat: ChatModel, heal: HealSettings) -> tuple[str, ...]:
    """What a reader of the record must know about the model and the settings."""
    found = []
    if not chat.system_role:
        found.append("The chat template has no system role: the persona opens the user turn.")
    if chat.ends.note:
        found.append(chat.ends.note)
    found += prompt_notes(chat)
    if sentence := unreached(chat, heal):
        found.append(sentence)
    usual = HealSettings()
    idle = [name for name in BARRIERS_OWN if getattr(heal, name) != getattr(usual, name)]
    if idle and not heal.barred:
        names = ", ".join(f"heal.{name}" for name in idle)
        found.append(f"{names} without effect: heal.barrier is none. Set it to kl_rev or kl_fwd.")
    return tuple(found)


def test_note(persona: Persona) -> tuple[str, ...]:
    """What a reader must know of the prompts that the headline is read on."""
    pools = persona.prompts
    if pools.halved:
        return (
            f"The persona has no test prompts: every other one of its evaluation prompts is kept "
            f"for the headline ({len(pools.test)}), and {len(pools.evaluate)} are evaluated. Give "
            "it prompts.test to have more of both.",
        )
    if not pools.test:
        return (
            "The persona has no test prompts and fewer than four evaluation prompts to take some "
            "from: the headline is read on the prompts that chose the round.",
        )
    return ()
