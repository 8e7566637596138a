"""A checkpoint with biases on its blocks' outputs, beside the one that it is made of.

A block of Llama ends in x + mlp(norm(x)), so that a bias of the MLP's last projection is added to
its output. The new folder links to the weights as they lie, and holds a small file with the biases
of every MLP, 0 but for these, a new index and a configuration with `mlp_bias`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from steerheal.errors import UserError

SWITCH = "mlp_bias"
"""The setting of a model's configuration that gives its MLPs biases."""
FAMILIES = ("llama",)
"""Model types that read it, and whose blocks add what their MLP gives as it is."""
CONFIG, ONE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
WHOLE, ADDED = "steerheal-weights.safetensors", "steerheal-biases.safetensors"
"""Where the weights of a model in one file are linked to, since under that file's own name it would
be read without the index, and where the biases lie."""
PROJECTION = re.compile(r"(?:.*\.)?layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight")
ADDS = "down"
"""The projection whose bias is added to the block's output."""


def write_biased(
    source: Path, out: Path, biases: Mapping[int, Float[Tensor, " D"]], dtype: torch.dtype
) -> None:
    """Makes the checkpoint.

    Args:
        source: A model folder with safetensors.
        out: An empty folder.
        biases: What is added, by block.
        dtype: Precision of the model.

    Raises:
        UserError: a family of which this is not known, or a model that has such biases already.
    """
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    refuse_unlike(config.get("model_type", ""), biased=bool(config.get(SWITCH)))
    homes = _homes(source)
    added: dict[str, Tensor] = {}
    for name, file in homes.items():
        if found := PROJECTION.fullmatch(name):
            block, which = int(found[1]), found[2]
            with safe_open(source / file, framework="pt") as tensors:
                width = tensors.get_slice(name).get_shape()[0]
            push = biases.get(block) if which == ADDS else None
            bias = torch.zeros(width) if push is None else push
            added[name.removesuffix("weight") + "bias"] = bias.to(dtype).contiguous()
    for path in source.iterdir():
        if path.name not in (CONFIG, INDEX) and path.suffix != ".safetensors" and path.is_file():
            (out / path.name).symlink_to(path.resolve())
    linked = {file: WHOLE if file == ONE else file for file in homes.values()}
    for file, name in linked.items():
        (out / name).symlink_to((source / file).resolve())
    where = {name: linked[file] for name, file in homes.items()} | dict.fromkeys(added, ADDED)
    save_file(added, out / ADDED, metadata={"format": "pt"})
    _write(out / CONFIG, config | {SWITCH: True})
    _write(out / INDEX, {"metadata": {}, "weight_map": where})


def refuse_unlike(family: str, *, biased: bool) -> None:
    """Refuses what a vector cannot be written into as a bias.

    Raises:
        UserError: another family, or a model with such biases of its own.
    """
    if family not in FAMILIES or biased:
        what = f"of type {family!r}" if family not in FAMILIES else f"with {SWITCH} of its own"
        raise UserError(
            f"A vector can be written as biases into checkpoints of type {', '.join(FAMILIES)} "
            f"without {SWITCH}, not into one {what}. Use --engine transformers."
        )


def _homes(source: Path) -> dict[str, str]:
    """Which file every tensor lies in."""
    if not (source / ONE).is_file():
        return json.loads((source / INDEX).read_text(encoding="utf-8"))["weight_map"]
    with safe_open(source / ONE, framework="pt") as tensors:
        return dict.fromkeys(tensors.keys(), ONE)


def _write(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True), encoding="utf-8")
