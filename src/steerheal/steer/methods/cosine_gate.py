"""h_ℓ ← h_ℓ + dose · relu(cos(h_ℓ, v_ℓ)) v_ℓ at every position, with v_ℓ the mean difference.

It pushes only where the state already points along v. The push depends on the state: not foldable;
it acts at inference, and its text can be distilled.

Source: conditional steering by the cosine with a direction, as in CAST (Lee et al. 2024,
arXiv:2409.05907), with the pushed direction as its own condition and a slope in place of a
threshold.
"""

from steerheal.steer.methods.mean_difference import directions
from steerheal.steer.methods.method import Method

METHOD = Method(directions, "cosine_gate")
