"""Aggregates of rows: one state against the base, two states, the doses of a sweep."""

import math
from typing import Any, Self

from steerheal.records.base import VERSION, Reading, Record
from steerheal.records.rows import Scores, VignetteRow


class Summary(Record):
    """One evaluated state against the base, on the same vignettes and prompts."""

    state: str
    nats: dict[str, float]
    """ln of the mean probability on each foundation."""
    delta_nats: dict[str, Reading]
    """Change of `nats` from the base."""
    top1: float
    """Share of vignettes whose foundation is ranked first, after centring on the base's means."""
    persona_logodds: Reading
    delta_logodds: Reading
    p_ans_any: Reading
    delta_p_ans_any: Reading
    coherence: float
    """Answer mass over the base's."""
    ppx_json: float
    """Perplexity of the forced JSON prefill."""
    perplexity: float
    """Median perplexity of the free answers under the base."""
    distinct_2: float
    repetition: float
    kl_to_base: Reading
    """KL(state‖base) per token on the state's own free answers."""
    coh_cost: Reading
    """|Δ answer mass| per nat of |Δ persona_logodds|."""
    json_is_valid: Reading = Reading.unknown("not read")
    """Share of free replies to a request for JSON that parse."""
    not_wrong: float = math.nan
    """Mean probability on "odd but not wrong": generic damage raises it."""
    plain_perplexity: float = math.nan
    """Perplexity of the bundled plain prose under the state."""
    long_perplexity: float = math.nan
    """Median tail perplexity of long answers under the base."""
    long_distinct_2: float = math.nan
    loop_share: float = math.nan
    """Share of long answers that loop."""
    long_words: float = math.nan
    """Mean length of long answers, in words."""
    surgical: bool | None
    """The target foundation moved as intended and more than every off-target; None: not moved."""


class Evaluation(Record):
    """One evaluated target as a file: aggregates, and the rows that they are functions of."""

    version: int = VERSION
    target: str
    model: str
    dtype: str
    persona: dict[str, Any]
    instrument: str
    think: int
    aggregates: Summary
    guards: dict[str, float] = {}
    """Metrics of outside damage guards, by guard and name."""
    rows: tuple[VignetteRow, ...]
    others: Scores
    """The rest of what was read; its vignettes are in `rows`."""
    how: str = ""
    """How it was read: as a run was, and what was read otherwise."""
    settings: dict[str, Any] = {}
    """The evaluation's settings, and its seed."""

    @property
    def scores(self) -> Scores:
        """Everything that was read, as one record."""
        return self.others.model_copy(update={"vignettes": self.rows})


class Comparison(Record):
    """State b minus state a on the same units; every reading has its paired interval."""

    a: str
    b: str
    instrument: str
    n: int
    """Vignettes that both states answered, counted per condition."""
    delta_nats: dict[str, Reading]
    """Change of ln mean p per foundation."""
    delta_clr: dict[str, Reading]
    """Change of the mean centred log-ratio per foundation, nats: a second look at the same move
    that no single vignette dominates."""
    delta_top1: Reading
    """Change of the share of vignettes ranked right."""
    delta_social: Reading
    """Change of the mean probability of "not wrong", which most damage raises."""
    delta_logodds: Reading
    """Change of persona_logodds, nats per token."""
    delta_p_ans_any: Reading
    """Change of the canary's answer mass."""
    delta_perplexity: Reading
    """Change of the mean ln perplexity of the free answers under the base, nats per token."""
    gated_selectivity: Reading
    """Move on the axis less a share of that off it, times squared coherence; nats."""
    si_flips: Reading
    """Net share of vignettes whose first-ranked foundation flips as intended."""
    coh_cost: Reading
    """|Δ answer mass| per nat of |Δ persona_logodds|."""
    surgical: bool | None
    """The target moved as intended and more than every off-target; None: not moved."""
    moved: tuple[str, ...] = ()
    """Readings whose interval excludes 0, by the names that `readings` gives them."""

    def readings(self) -> dict[str, Reading]:
        """Every reading by name; a foundation's are named like `delta_nats.care`."""
        found: dict[str, Reading] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Reading):
                found[name] = value
            elif isinstance(value, dict):
                found.update({f"{name}.{key}": reading for key, reading in value.items()})
        return found


class DosePoint(Record):
    """One dose of a sweep, read against the base on the same vignettes and prompts."""

    dose: float
    control: bool = False
    """True: a random vector at equal KL instead of the persona's."""
    delta_nats: dict[str, Reading]
    """Change of ln mean p per foundation."""
    delta_logodds: Reading
    """Change of persona_logodds, nats per token."""
    coherence: float
    """Answer mass over the base's."""
    perplexity: float
    """Median perplexity of the free answers under the base."""
    kl: float
    """Mean KL(steered‖base) per token on the state's own free answers, nats."""
    n: int
    """Vignettes behind the foundations."""

    @classmethod
    def of(cls, read: Summary, dose: float, *, control: bool = False) -> Self:
        """A dose's summary as a point."""
        return cls(
            dose=dose,
            control=control,
            delta_nats=read.delta_nats,
            delta_logodds=read.delta_logodds,
            coherence=read.coherence,
            perplexity=read.perplexity,
            kl=read.kl_to_base.value,
            n=max((reading.n for reading in read.delta_nats.values()), default=0),
        )


class Sweep(Record):
    """A student under several doses of its vector, and under a random one."""

    points: tuple[DosePoint, ...]
    base_perplexity: float
    """Median perplexity of the base's own free answers."""
