"""Which precision a model is read in where nobody says."""

import torch

LARGE = 1e9
"""Parameters from which a processor's own bfloat16 products are taken. They cost a third of what
float32 ones do there, as on a GPU; a smaller model is read in minutes either way, and in float32 it
reads alike on every processor. What they do to readings: benchmarks/precision.py."""


def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 by itself: AVX512-BF16 or AMX."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def by_size(parameters: int) -> torch.dtype:
    """The precision of a model of so many parameters on such a processor."""
    return torch.bfloat16 if parameters >= LARGE else torch.float32
