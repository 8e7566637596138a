"""Settings of every run behind docs/results.md."""

from typing import Any, NamedTuple

from steerheal.config import PRESETS, RunConfig, merge, validated


class Arm(NamedTuple):
    """What a run changes."""

    name: str
    change: dict[str, Any]
    gate: float | None = None
    """Read the nll arm's adapter at this gate instead of training."""


class Part(NamedTuple):
    """Arms that share everything else."""

    common: dict[str, Any]
    arms: tuple[Arm, ...]


def barrier(kind: str, aggregate: str, lam: float) -> Arm:
    """A divergence at one strength."""
    heal = {"barrier": kind, "aggregate": aggregate, "lam": lam}
    return Arm(f"{kind}-{aggregate}-{lam:g}", {"heal": heal})


def plain(name: str, **heal: object) -> Arm:
    """No divergence, but something else."""
    return Arm(name, {"heal": {"barrier": "none", **heal}})


NLL = plain("nll")
ONE_ROUND = {
    "rounds": 1,
    "sampling": {"tokens": 48, "rows": 64},
    "dose": {"start": 2.0, "want": 48, "minimum": 12, "batches": 2},
    "measure": {
        "instrument": "likelihood",
        "per_foundation": 2,
        "prompts": 28,
        "tokens": 32,
        "long_prompts": 4,
        "long_tokens": 40,
        "json_prompts": 4,
    },
    "check": {"doses": ()},
    "heal": {"barrier": "kl_rev", "aggregate": "rmse", "lam": 0.3, "tau": 0.1, "epochs": 2},
}
STRENGTHS = [
    barrier(kind, aggregate, lam)
    for kind in ("kl_rev", "kl_fwd")
    for aggregate in ("rmse", "mean")
    for lam in (0.3, 1.0)
]
LESS = [
    Arm(f"nll-gate-{gate:g}", {"heal": {"barrier": "none"}}, gate) for gate in (0.75, 0.5, 0.25)
]
CONTROLS = [
    *LESS,
    plain("nll-1-epoch", epochs=1),
    Arm("nll-dose-1", {"heal": {"barrier": "none"}, "dose": {"start": 1.0}}),
    Arm("nll-dose-0.5", {"heal": {"barrier": "none"}, "dose": {"start": 0.5}}),
    # What training on the model's own text does by itself.
    Arm("nll-unsteered", {"heal": {"barrier": "none"}, "dose": {"start": 0.01}}),
]
OTHERS = [
    plain("wd-50", weight_decay=50.0),
    plain("wd-200", weight_decay=200.0),
    plain("spectral-0.01", spectral=0.01),
    plain("spectral-0.05", spectral=0.05),
    plain("distill", objective="distill"),
    Arm("distill-kl_rev-rmse-0.3", {"heal": {"objective": "distill"}}),
]
BEST = {"barrier": "kl_rev", "aggregate": "mean", "lam": 0.3}
LOOPS = (
    NLL,
    Arm("best", {"heal": BEST}),
    Arm("best-base", {"heal": {**BEST, "reference": "base"}}),
    # A target that one kept completion meets: the first dose is always accepted.
    Arm("best-no-walk", {"heal": BEST, "dose": {"walks": 1, "target": 0.01}}),
    Arm("half-dose", {"heal": {"barrier": "none"}, "dose": {"start": 1.0}}),
)
LOOP = merge(
    ONE_ROUND,
    {
        "rounds": 6,
        "patience": 0,
        "read_steered": False,
        "vector": {"contexts": 24},
        "sampling": {"tokens": 36, "rows": 40},
        "dose": {"want": 32, "minimum": 10},
        "filter": {"read_trait": False},
        "measure": {
            "per_foundation": 1,
            "prompts": 20,
            "tokens": 24,
            "long_prompts": 0,
            "json_prompts": 0,
        },
    },
)
PARTS = {
    "love": Part({"persona": "love", **ONE_ROUND}, (NLL, *STRENGTHS, *CONTROLS, *OTHERS)),
    "authority": Part(
        {"persona": "authority", **ONE_ROUND},
        (NLL, barrier("kl_rev", "mean", 0.3), plain("wd-50", weight_decay=50.0)),
    ),
    "cases": Part(
        {"persona": "love", **ONE_ROUND},
        (plain("nll-lr-100x", lr=0.05),),
    ),
    "loop": Part({"persona": "love", **LOOP}, LOOPS),
}


def settings(part: Part, arm: Arm, seed: int) -> RunConfig:
    """The whole configuration of an arm at a seed."""
    values = merge(merge(PRESETS["quick"], part.common), {**arm.change, "seed": seed})
    return validated(RunConfig, values, source=arm.name)
