"""An adapter at another rank: the nearest one, by a singular value decomposition of every layer.

ΔW = s·B·A has at most the rank of its factors, so that their QR factors hold all of it:
B = Q_B·R_B and Aᵀ = Q_A·R_A give ΔW = Q_B·(s·R_B·R_Aᵀ)·Q_Aᵀ, and only the small matrix in between
is decomposed. Its N largest singular values make the nearest ΔW of rank N (Eckart and Young 1936).
"""

import math
from typing import NamedTuple

import torch

from steerheal.models.wide import wide
from steerheal.state.adapter import Adapter
from steerheal.state.factors import Pair, filled


class Recompressed(NamedTuple):
    """An adapter at another rank."""

    adapter: Adapter
    lost: float
    """Share of ‖ΔW‖², summed over the layers, that the rank has no room for."""


def recompressed(adapter: Adapter, rank: int) -> Recompressed:
    """The nearest adapter of a rank, its scale 1; a higher rank is filled up with zeros."""
    pairs, lost, whole = {}, [], []
    for name, pair in adapter.pairs.items():
        left, inside_up = torch.linalg.qr(wide(pair.up))
        right, inside_down = torch.linalg.qr(wide(pair.down).T)
        u, sizes, v = torch.linalg.svd(adapter.scale * inside_up @ inside_down.T)
        root = sizes[:rank].sqrt()
        up = left @ u[:, :rank] * root
        down = (right @ v[:rank].T * root).T
        pairs[name] = filled(Pair(down.float().contiguous(), up.float().contiguous()), rank)
        whole.append(sizes.square().sum().item())
        lost.append(sizes[rank:].square().sum().item())
    total = math.fsum(whole)
    share = math.fsum(lost) / total if total else 0.0
    return Recompressed(Adapter(pairs, 1.0, rank), share)
