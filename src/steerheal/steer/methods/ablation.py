"""h_ℓ ← h_ℓ − dose · (h_ℓ·v̂_ℓ) v̂_ℓ, with v_ℓ the mean difference and v̂_ℓ its direction.

At dose 1 the state keeps nothing along v. How much is removed depends on the state, so that no
static weight of one block does it: not foldable; it acts at inference, and its text can be
distilled.

Source: directional ablation (Arditi et al. 2024, arXiv:2406.11717), on the settings' band of blocks
instead of on every one.
"""

from steerheal.steer.methods.mean_difference import directions
from steerheal.steer.methods.method import Method

METHOD = Method(directions, "ablation")
