"""Open sets: what a setting may name, one table each.

A row is a name, a sentence and a place in Python, "module:attribute", in this package; the module
is imported when the name is first used, so that help and settings stay light. Where a name is
asked for, a place of one's own serves as well ("my_module:push"), and from Python a function, which
goes by its place.
"""

import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from steerheal.errors import UserError, unknown


@dataclass(frozen=True)
class Row:
    """What a name stands for."""

    says: str
    """What it is, as help and docs say it."""
    place: str = ""
    """Module and attribute in this package; empty where nothing stands behind the name."""


class Table:
    """One open set; as an annotation it makes a text field take its names."""

    def __init__(
        self, what: str, rows: Mapping[str, Row], *, once: Mapping[str, str] | None = None
    ) -> None:
        """A table of `rows`.

        Args:
            what: What a message calls one of them.
            rows: By name, in the order of the help.
            once: Former names, which old records and files hold, and today's.
        """
        self.what, self.rows, self._once = what, rows, once or {}
        self._given: dict[str, Callable[..., Any]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules of this package that rows stand in."""
        return tuple(sorted({_split(row.place)[0] for row in self.rows.values() if row.place}))

    def knows(self, name: str) -> bool:
        """Whether it is a row's name, or could be a place in Python."""
        return name in self.rows or all(_split(name))

    def sentences(self) -> str:
        """Every name with what it is, for the help."""
        return "; ".join(f"{name}: {row.says}" for name, row in self.rows.items())

    def name_of(self, value: object) -> str:
        """The name under which something is recorded: a row's, or a place in Python.

        Raises:
            PydanticCustomError: neither.
        """
        if callable(value):
            name = f"{value.__module__}:{value.__qualname__}"
            self._given[name] = value
            return name
        name = self._once.get(value, value) if isinstance(value, str) else ""
        if self.knows(name):
            return name
        raise PydanticCustomError("not_in_table", "is not in the table")

    def find(self, name: str) -> Any:
        """What stands behind a name; None where nothing does.

        Raises:
            UserError: no such name, or nothing at that place.
        """
        if name in self._given:
            return self._given[name]
        row, (module, attribute) = self.rows.get(name), _split(name)
        if row is None and not (module and attribute):
            raise unknown(self.what, name, self.rows)
        if row is not None:
            if not row.place:
                return None
            module, attribute = _split(row.place)
            return getattr(importlib.import_module(f"steerheal.{module}"), attribute)
        try:
            found = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"The {self.what} {name} is not to be had: {error}. It is looked up as an "
                "attribute of a module that Python can import."
            ) from error
        return found

    def code_of(self, name: str) -> str:
        """Digest of the module of what is not in this package; empty for a row."""
        if name in self.rows:
            return ""
        found = self.find(name)
        home = inspect.getmodule(found)
        try:
            said = inspect.getsource(home if home is not None else found)
        except (OSError, TypeError):  # typed into a prompt
            code = getattr(found, "__code__", None)
            said = repr((code.co_code, code.co_consts) if code else found)
        return hashlib.sha256(said.encode()).hexdigest()[:12]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.name_of, handler(source))


def _split(place: str) -> tuple[str, str]:
    module, _, attribute = place.partition(":")
    parts = [*module.split("."), *attribute.split(".")]
    # "<locals>" stands in the place of a function inside another.
    named = all(part.isidentifier() or part == "<locals>" or part == "<lambda>" for part in parts)
    return (module, attribute) if named else ("", "")


METHODS = Table(
    "vector method",
    {
        "mean_difference": Row(
            "the mean over contexts of the poles' difference",
            "steer.methods.mean_difference:METHOD",
        ),
        "pca": Row(
            "the mean difference along the differences' first principal direction",
            "steer.methods.pca:METHOD",
        ),
        "single_pair": Row("the first context's difference", "steer.methods.single_pair:METHOD"),
        "contrastive_answers": Row(
            "the mean difference of the poles' own answers, read with no system prompt",
            "steer.methods.contrastive_answers:METHOD",
        ),
        "s_space": Row(
            "the mean difference within what a block writes most", "steer.methods.s_space:METHOD"
        ),
        "trait_per_kl": Row(
            "what gains most of the poles' log-ratio per √KL, by a ridge regression",
            "steer.methods.trait_per_kl:METHOD",
        ),
        "pulled_back": Row(
            "the mean difference some blocks later, pulled back by the Jacobian",
            "steer.methods.pulled_back:METHOD",
        ),
        "random": Row(
            "a random direction that moves the model as far, the control",
            "steer.methods.random:METHOD",
        ),
        "ablation": Row(
            "removes the hidden state's part along the mean difference",
            "steer.methods.ablation:METHOD",
        ),
        "cosine_gate": Row(
            "adds the mean difference only where the hidden state points along it",
            "steer.methods.cosine_gate:METHOD",
        ),
    },
)
TEACHERS = Table(
    "teacher",
    {
        "vector": Row("the student under the round's vector", "steer.teachers.vector:TEACHER"),
        "plausible": Row(
            "the same, restricted to tokens that the base finds plausible",
            "steer.teachers.plausible:TEACHER",
        ),
        "antisymmetric": Row(
            "the student and half of what the vector and its opposite differ by",
            "steer.teachers.antisymmetric:TEACHER",
        ),
        "prompt": Row(
            "the student under the positive pole as system prompt, with no vector",
            "steer.teachers.prompt:TEACHER",
        ),
        "plain": Row(
            "the student with neither vector nor system prompt, the control",
            "steer.teachers.plain:TEACHER",
        ),
    },
)
NO_BARRIER = "none"
BARRIERS = Table(
    "barrier",
    {
        NO_BARRIER: Row("no barrier, the control"),
        "kl_fwd": Row("KL(reference‖student), mass-covering", "heal.barriers.kl_fwd:BARRIER"),
        "kl_rev": Row("KL(student‖reference), mode-seeking", "heal.barriers.kl_rev:BARRIER"),
    },
    once={"nll": NO_BARRIER},
)
AGGREGATES = Table(
    "aggregate",
    {
        "mean": Row("the mean", "heal.aggregates:mean"),
        "rmse": Row("the root of the mean square", "heal.aggregates:rmse"),
        "p95": Row("the 95th percentile", "heal.aggregates:p95"),
        "max": Row("the largest", "heal.aggregates:largest"),
    },
)
GROUP = "group"
OBJECTIVES = Table(
    "objective",
    {
        "sft": Row("cross-entropy of the completions' tokens", "heal.objectives.sft:OBJECTIVE"),
        "distill": Row(
            "KL(teacher‖student) to the steered teacher's whole distribution at each of them, "
            "under the dose that the completion was drawn at",
            "heal.objectives.distill:OBJECTIVE",
        ),
        "reverse": Row(
            "KL(student‖teacher), which seeks what the teacher finds likeliest; with on_policy on "
            "the student's own text",
            "heal.objectives.reverse:OBJECTIVE",
        ),
        "dpo": Row(
            "what the vector writes is preferred to what it writes at the opposite dose",
            "heal.objectives.dpo:OBJECTIVE",
        ),
        GROUP: Row(
            "of the student's own answers to a prompt, those of more trait that the filter keeps "
            "are to become likelier",
            "heal.objectives.group:OBJECTIVE",
        ),
    },
)
INSTRUMENTS = Table(
    "instrument",
    {
        "auto": Row("forced_choice if the base can answer it, else likelihood"),
        "forced_choice": Row("the tinymfv protocol", "measure.forced_choice:INSTRUMENT"),
        "moralmaps": Row("upstream itself, if installed", "measure.moralmaps:INSTRUMENT"),
        "likelihood": Row(
            "which reason the model finds likeliest, given the act",
            "measure.likelihood:INSTRUMENT",
        ),
    },
)
OWN_ENGINE = "transformers"
ENGINES = Table(
    "sampling engine",
    {
        OWN_ENGINE: Row(
            "this package's sampler on the transformers model, any states and doses in one batch",
            "models.engines.own:ENGINE",
        ),
        "vllm": Row(
            "vLLM on checkpoints, a vector as biases of Llama's blocks and adapters as LoRA "
            "requests; one load per dose (extra `vllm`)",
            "models.engines.vllm:ENGINE",
        ),
    },
)
ARM_KINDS = Table(
    "kind of arm",
    {
        "base": Row("the model as it is", "pipeline.arms.base:KIND"),
        "prompt": Row(
            "a system prompt, the persona's positive pole unless the arm has a text of its own",
            "pipeline.arms.prompt:KIND",
        ),
        "engineered": Row(
            "the system prompt that does best on training prompts, of the pole and its training "
            "paraphrases",
            "pipeline.arms.engineered:KIND",
        ),
        "contrast": Row(
            "decoding from base + β·(positive prompt − negative prompt), logit by logit",
            "pipeline.arms.contrast:KIND",
        ),
        "steered": Row("the vector at doses, by a hook", "pipeline.arms.steered:KIND"),
        "random": Row(
            "a random vector of the vector's KL at the same doses", "pipeline.arms.random:KIND"
        ),
        "trained": Row(
            "rounds of a run, one unless it says more: text by its teacher, filtered and healed",
            "pipeline.arms.trained:KIND",
        ),
        "epochs": Row(
            "one text trained on for more and more epochs, a heal for each number of them",
            "pipeline.arms.epochs:KIND",
        ),
        "unsteered": Row(
            "the same heal on the model's own answers to the same prompts",
            "pipeline.arms.unsteered:KIND",
        ),
        "weights": Row(
            "an adapter of text under the positive prompt less one under the negative",
            "pipeline.arms.weights:KIND",
        ),
    },
)
