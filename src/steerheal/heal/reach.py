"""What of the band's blocks has no adapter although it was asked for.

Mixtures of experts keep the experts of a block in one tensor, [experts, out, in], and their routers
in modules of their own: these are no linear layers. Some names of linear layers PEFT takes for such
experts.
"""

import math

from steerheal.config import HealSettings
from steerheal.heal.adapter import band_roots, labels_of, target_names
from steerheal.models.model import ChatModel
from steerheal.models.quantise import parameters_of


def unreached(chat: ChatModel, settings: HealSettings) -> str:
    """A sentence with the share of the asked-for weights that no adapter reaches; empty for none.

    A matrix counts as one, a tensor of experts as one matrix each.
    """
    reached = set(target_names(chat, settings))
    matrices, weights = [0, 0], [0, 0]
    missed: dict[str, None] = {}
    for root in band_roots(chat, settings):
        for name, weight in chat.net.get_submodule(root).named_parameters():
            owner = name.removesuffix(".weight")
            linear = f"{root}.{owner}" in reached
            asked = linear or bool(labels_of(owner) & set(settings.targets))
            if weight.ndim < 2 or not asked:
                continue
            matrices[linear] += math.prod(weight.shape[:-2])
            weights[linear] += parameters_of(weight)
            if not linear:
                missed[owner] = None
    if not missed:
        return ""
    return (
        f"The adapter reaches {matrices[1]} of {sum(matrices)} matrices in heal.band, "
        f"{100 * weights[1] / sum(weights):.0f} % of their weights. Without one, as no linear "
        f"layer or as a name that PEFT takes for experts: {', '.join(missed)}."
    )
