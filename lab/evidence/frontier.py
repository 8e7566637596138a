"""Runs behind lab/PLAN.md: break a model by steering, heal it in several ways, read every state.

One call does one persona at one seed on one model: a ladder of doses, harvests at the dose that
breaks the text, a heal per arm, and a line of JSON per state that is read. Lines that are there are
not made again, and neither are adapters, so that a run that was cut off goes on where it stopped.
A judge reads the answers of all lines afterwards (judged.py).
Usage: python lab/evidence/frontier.py --model FILE --persona NAME --seed N --scale SCALE --out DIR
"""

import argparse
import gzip
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from steerheal import prompts
from steerheal.config import (
    FilterSettings,
    HealSettings,
    MeasureSettings,
    ModelSettings,
    SamplingSettings,
    VectorSettings,
)
from steerheal.filter.coherent import broken
from steerheal.filter.rules import calibrated, judge
from steerheal.filter.scores import scored_by
from steerheal.heal.batches import Data
from steerheal.heal.train import heal_student, training_pairs
from steerheal.measure import coherence, damage, free, instruments, tasks, vignettes
from steerheal.measure.poles import expected_logodds
from steerheal.measure.spill import base_texts, spill
from steerheal.models.generate import Draw, write
from steerheal.models.load import load
from steerheal.models.model import ChatModel
from steerheal.models.score import continuation_states, token_logprobs
from steerheal.personas import HALVES, Half, Persona, find
from steerheal.records import Calibration, Completion, Verdict
from steerheal.state.adapter import Adapter
from steerheal.state.formulas import plausible
from steerheal.state.values import State, base
from steerheal.state.vector import SteeringVector
from steerheal.steer.equal import equal_kl
from steerheal.steer.vector import extract

IMPLAUSIBLE = -5.0
"""ln p₀ below which the base finds a token implausible."""
LADDER = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
SHARES = (0.5, 0.75, 1.0)
"""Doses of a harvest, in multiples of the dose that breaks the text."""
BROKEN = 0.75
"""Share of the base's own coherent answers at which the text counts as broken."""
MASK = 0.05
"""ε of the plausible teacher."""
ANCHOR = 3.0
LEAST = 8
"""Fewest texts that an adapter is trained on."""
GATES = (0.25, 0.5, 0.75, 1.0, 1.25)


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    contexts: int
    pairs: int
    """Paraphrase pairs per half that are read."""
    asked: int
    samples: int
    """Answers per evaluation prompt."""
    tokens: int
    pool: int
    """Draws per training prompt; one of them is trained on."""
    texts: int
    """Training texts of every arm."""
    epochs: int
    control: int
    tasks: int
    rows: int
    vignettes: int | None
    """Per foundation by forced choice, 0 is all; None is no forced choice."""
    think: tuple[int, ...] = ()
    """Tokens of thinking at which the main states are read."""


SCALES = {
    "smoke": Scale(8, 2, 4, 1, 16, 4, 8, 2, 4, 4, 64, None),
    "smoke-fc": Scale(8, 2, 4, 1, 16, 4, 8, 2, 4, 4, 64, 1, (0, 4)),
    "small": Scale(64, 8, 32, 2, 48, 8, 64, 6, 32, 96, 256, None),
    "large": Scale(64, 4, 32, 2, 48, 4, 64, 4, 32, 48, 256, 0, (0, 128)),
}


class Pool(NamedTuple):
    """What was written to the training prompts."""

    written: list[Completion]
    kept: list[Completion]
    """By the filter."""


class Lab:
    """One persona at one seed on one model."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Loads the model, and what earlier calls have left."""
        self.chat: ChatModel = load(
            ModelSettings(name=options.model, dtype="float32", device=options.device)
        )
        self.persona: Persona = find(options.persona, reverse=options.reverse)
        self.scale, self.seed = SCALES[options.scale], options.seed
        called = f"{options.persona}{'-reversed' if options.reverse else ''}"
        self.name = f"{Path(options.model or 'embedded').stem}-{called}-s{self.seed}"
        self.folder: Path = options.out
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / f"{self.name}.jsonl"
        lines = self.file.read_text().split("\n") if self.file.exists() else []
        self.lines = {row["state"]: row for row in map(json.loads, filter(None, lines))}
        self.sampling = SamplingSettings(
            tokens=self.scale.tokens, temperature=0.7, rows=self.scale.rows
        )

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        print(f"{time.strftime('%H:%M:%S')} {self.name}: {text}", flush=True)

    def note(self, state: str, **row: Any) -> None:
        """One more line."""
        self.lines[state] = {"state": state, **row}
        with self.file.open("a") as stream:
            stream.write(json.dumps(self.lines[state]) + "\n")
        self.say(state)

    # ── what is read ─────────────────────────────────────────────────────────────────────────────

    @cached_property
    def control(self) -> list[Completion]:
        """The base's answers to unrelated prompts, for spill."""
        asked = prompts.control_held_out()[: self.scale.control]
        return base_texts(self.chat, asked, self.sampling, seed=70_001)

    @cached_property
    def aside(self) -> Data:
        """The base's answers to other unrelated prompts, for the anchor."""
        asked = prompts.control_train()[: self.scale.control]
        said = base_texts(self.chat, asked, self.sampling, seed=70_002)
        pairs = training_pairs(self.chat, [text for text in said if text.tokens])
        return Data(pairs, continuation_states(self.chat, pairs))

    @cached_property
    def limits(self) -> Calibration:
        """The filter's limits on the base's own text."""
        draws = self.draws(self.persona.prompts.train, 1, 1_000)
        said = write(self.chat, draws, self.sampling).completions
        scored = scored_by(self.chat, said, self.persona, logodds=False)
        return calibrated(said, scored, self.persona, FilterSettings(read_trait=False))

    def poles(self, half: Half) -> list[tuple[str, str]]:
        """Wordings of the poles."""
        pairs = self.persona.pairs(half)[: self.scale.pairs]
        return [(pair.positive, pair.negative) for pair in pairs]

    def verdicts(self, answers: free.Answers) -> list[Verdict]:
        """What the filter says of answers."""
        scored = scored_by(
            self.chat, answers.completions, self.persona, answers.states,
            writer=answers.writer, logodds=False,
        )  # fmt: skip
        return judge(
            answers.completions, scored, self.persona,
            calibration=self.limits, settings=FilterSettings(read_trait=False),
        )  # fmt: skip

    def draws(self, asked: Sequence[str], samples: int, stream: int) -> list[Draw]:
        """Every prompt so many times; streams of different numbers share no seed."""
        seed = (self.seed * 100_003 + stream) * 1_000_003
        return [Draw(prompt, 0, seed + i) for i, prompt in enumerate(list(asked) * samples)]

    def written(self, state: State, draws: Sequence[Draw]) -> free.Answers:
        """What a state writes."""
        with state.entered(self.chat) as writer:
            said = write(writer, draws, self.sampling, keep_states=True, keep_broken=True)
            return free.Answers(said.completions, said.states, writer)

    def read(self, name: str, state: State, *, think: bool = False, **about: Any) -> None:
        """Everything of a state, as a line; a state that is there is left alone."""
        if name in self.lines:
            return
        began, scale = time.monotonic(), self.scale
        asked = self.persona.prompts.evaluate[: scale.asked]
        answers = self.written(state, self.draws(asked, scale.samples, 2_000))
        verdicts = self.verdicts(answers)
        rows = free.judge(self.chat, answers, self.persona)
        pairs = free.answer_pairs(self.chat, answers.completions)
        logs = token_logprobs(self.chat, pairs)
        row: dict[str, Any] = dict(about)
        row["answers"] = [
            {
                "prompt": item.prompt,
                "text": item.text,
                "logodds": scored.logodds,
                "kl": scored.kl_to_base,
                "nll": -own.mean().item() if len(own) else math.nan,
                "implausible": (own < IMPLAUSIBLE).float().mean().item() if len(own) else math.nan,
                "reasons": verdict.reasons,
            }
            for item, scored, own, verdict in zip(
                answers.completions, rows, logs, verdicts, strict=True
            )
        ]
        for half in HALVES:
            found = expected_logodds(self.chat, answers, self.poles(half))
            row[f"trait_{half}"] = [[round(x, 5) for x in one] for one in found.tolist()]
        row["spill"] = spill(self.chat, state, self.control)
        with state.entered(self.chat) as reader:
            row["tasks"] = self._tasks(reader)
            (slots,) = coherence.sweep(reader, prompts.lines("statements"))
            row["canary"] = [item.p_ans_any for item in slots]
            row["plain"] = damage.plain_perplexity(reader)
            for tokens in scale.think if scale.vignettes is not None else ():
                if tokens == 0 or think:
                    row[f"forced_{tokens}"] = self._forced(reader, tokens)
        self.note(name, **row, seconds=time.monotonic() - began)

    def _tasks(self, reader: ChatModel) -> dict[str, bool]:
        """Which tasks are done, answered greedily."""
        chosen = tasks.load()[:: max(1, 96 // self.scale.tasks)]
        greedy = self.sampling.model_copy(update={"temperature": 0.0})
        said = write(reader, [Draw(task.prompt) for task in chosen], greedy, keep_broken=True)
        pairs = zip(chosen, said.completions, strict=True)
        return {task.id: tasks.passed(task, item.text) for task, item in pairs}

    def _forced(self, reader: ChatModel, think: int) -> list[list[Any]]:
        """Per vignette: its id, foundation, probabilities and answer mass."""
        settings = MeasureSettings(
            instrument="forced_choice",
            think=think,
            per_foundation=(self.scale.vignettes or 0)
            if not think
            else (self.scale.vignettes or 8),
        )
        found = instruments.sweep(reader, vignettes.chosen(settings), settings)[0].rows
        return [
            [one.id, one.foundation, [round(p, 6) for p in one.p], round(one.p_ans_any, 6)]
            for one in found
        ]

    # ── what is made ─────────────────────────────────────────────────────────────────────────────

    def vector(self, student: State, tag: str) -> SteeringVector:
        """The mean of the training paraphrases' own vectors, extracted from a student."""
        file = self.folder / f"{self.name}-{tag}.vector"
        if file.exists():
            return SteeringVector.load(file)
        chosen = prompts.first_contexts(self.scale.contexts)
        settings = VectorSettings(contexts=len(chosen))
        poles = self.poles("train")
        total: SteeringVector | None = None
        for positive, negative in poles:
            told = self.persona.model_copy(update={"positive": positive, "negative": negative})
            one = extract(self.chat, told, chosen, settings, student=student)
            total = one if total is None else total + one
        assert total is not None
        found = total * (1 / len(poles))
        found.save(file)
        return found

    def harvest(self, state: State, tag: str, doses: Sequence[float] = ()) -> "Pool":
        """Texts to the training prompts at every dose; the same seeds whoever writes."""
        states = [state.at_dose(dose) for dose in doses] or [state]
        draws = self.draws(self.persona.prompts.train, self.scale.pool, 3_000)
        found: list[tuple[Completion, bool]] = []
        for place, one in enumerate(states):
            mine = [draw for i, draw in enumerate(draws) if (i + i // 64) % len(states) == place]
            answers = self.written(one, mine)
            verdicts = self.verdicts(answers)
            found += [
                (item, verdict.kept)
                for item, verdict in zip(answers.completions, verdicts, strict=True)
                if item.tokens
            ]
        self.note(f"pool {tag}", drawn=len(draws), written=len(found),
                  kept=sum(kept for _, kept in found))  # fmt: skip
        return Pool([item for item, _ in found], [item for item, kept in found if kept])

    def chosen(self, kept: Sequence[Completion], *, by: Sequence[float] = ()) -> list[Completion]:
        """One text per training prompt in turn: a random one, or the one that scores highest."""
        order = list(range(len(kept)))
        random.Random(self.seed).shuffle(order)
        if by:
            order.sort(key=lambda i: -by[i])
        per: dict[str, list[Completion]] = {}
        for i in order:
            per.setdefault(kept[i].prompt, []).append(kept[i])
        found: list[Completion] = []
        for lap in range(self.scale.pool):
            found += [
                mine[lap]
                for prompt in self.persona.prompts.train
                if len(mine := per.get(prompt, [])) > lap
            ]
        return found[: self.scale.texts]

    def healed(
        self, name: str, texts: Sequence[Completion], student: State | None = None, **changes: Any
    ) -> Adapter | None:
        """An adapter on these texts; all of a seed start alike and take their steps alike."""
        folder = self.folder / f"{self.name}-{name}"
        if folder.exists():
            return Adapter.load(folder)
        if len(texts) < LEAST:
            self.note(f"heal {name}", outcome="starved", texts=len(texts))
            return None
        settings = HealSettings(barrier="nll", epochs=self.scale.epochs, held_out=0.0, **changes)
        anchor = self.aside if settings.anchor else None
        pairs = training_pairs(self.chat, texts)
        began = time.monotonic()
        with (student or base()).entered(self.chat):
            done = heal_student(self.chat, pairs, None, settings, anchor=anchor, seed=self.seed)
        self.note(
            f"heal {name}",
            outcome=done.log.outcome,
            reason=done.log.reason,
            texts=len(texts),
            tokens=sum(len(text.tokens) for text in texts),
            ce=[done.log.steps[0].ce, done.log.steps[-1].ce],
            anchor=done.log.steps[-1].anchor,
            seconds=time.monotonic() - began,
            sample=[text.text for text in texts[:4]],
        )
        done.adapter.save(folder)
        return done.adapter

    def breaking(self, tag: str, student: State, vector: SteeringVector) -> float:
        """The least dose of the ladder whose text is broken; the last one if none is."""
        key = f"breaking {tag}"
        if key not in self.lines:
            asked = self.draws(self.persona.prompts.evaluate[: self.scale.asked], 2, 4_000)

            def coherent(state: State) -> float:
                found = self.verdicts(self.written(state, asked))
                return sum(not broken(one) for one in found) / len(found)

            shares = {0.0: coherent(student)}
            for dose in LADDER:
                shares[dose] = coherent(student.steered(vector, dose))
            over = [d for d in LADDER if shares[d] < BROKEN * shares[0.0]]
            self.note(key, dose=min(over, default=LADDER[-1]), shares=shares)
        return self.lines[key]["dose"]


def ladder(lab: Lab) -> tuple[SteeringVector, float]:
    """Base, prompt, the curve of doses and a random vector at equal KL; the dose that breaks."""
    plain = base()
    lab.read("base", plain, think=True, arm="base")
    pair = lab.persona.pairs("train")[0]
    lab.read("prompt", plain.prompted(pair.positive), think=True, arm="prompt")
    vector = lab.vector(plain, "v1")
    dose = lab.breaking("1", plain, vector)
    for one in LADDER:
        lab.read(f"steered {one:g}", plain.steered(vector, one), arm="steered", dose=one,
                 think=one == dose)  # fmt: skip
    return vector, dose


def arms(lab: Lab, vector: SteeringVector, dose: float) -> None:
    """Every heal of the first round, and its states."""
    plain, doses = base(), [share * dose for share in SHARES]
    steered = plain.steered(vector, dose)

    def read(
        arm: str, gates: Sequence[float], *adapters: Adapter | None, scale: float = 1.0
    ) -> None:
        """An adapter at gates, less a second one at the same gates where there is one."""
        for gate in gates if None not in adapters else ():
            state: State = base()
            for sign, adapter in zip((1.0, -1.0), adapters, strict=False):
                assert adapter is not None
                state = state.folded(adapter, sign * scale * gate)
            lab.read(f"{arm} {gate:g}", state, arm=arm, gate=gate, think=gate == 1.0)

    pool = lab.harvest(steered, "steered", doses)
    front = lab.healed("none", lab.chosen(pool.kept))
    read("none", GATES, front)
    own = lab.harvest(plain, "unsteered").written
    calm = lab.healed("unsteered", lab.chosen(own))
    read("unsteered", (1.0,), calm)
    read("unfiltered", (0.5, 1.0), lab.healed("unfiltered", lab.chosen(pool.written)))
    read("anchor", (0.5, 1.0, 1.5), lab.healed("anchor", lab.chosen(pool.kept), anchor=ANCHOR))
    scores = _scores(lab, pool.kept)
    read("best", (0.5, 1.0), lab.healed("best", lab.chosen(pool.kept, by=scores)))

    up = lab.healed(
        "masked", lab.chosen(lab.harvest(plausible(steered, plain, MASK), "masked", doses).kept)
    )
    quiet = lab.harvest(plausible(plain, plain, MASK), "masked unsteered").written
    down = lab.healed("masked-unsteered", lab.chosen(quiet))
    read("masked", (0.5, 1.0), up)
    read("masked-unsteered", (1.0,), down)
    read("common", (0.5, 1.0, 1.5), up, down)
    read("common-plain", (1.0, 1.5), front, calm)

    other = lab.harvest(plain.steered(vector, -dose), "opposite", [-one for one in doses])
    if other.kept:
        read("odd", (0.5, 1.0), front, lab.healed("opposite", lab.chosen(other.kept)), scale=0.5)
    told = plain.prompted(lab.persona.pairs("train")[0].positive)
    said = lab.harvest(told, "prompted").kept
    read("prompted", (1.0,), lab.healed("prompted", lab.chosen(said)))
    matched(lab, steered)


def matched(lab: Lab, steered: State) -> None:
    """A random vector at the KL of the steered state, and what is healed from its text."""
    found = equal_kl(lab.chat, base(), steered, lab.control, seed=lab.seed)
    if found.vector is None:
        lab.note("random: no scale reaches the KL")
        return
    drawn = base().steered(found.vector, 1.0)
    lab.read("random", drawn, arm="random", think=True)
    pool = lab.harvest(drawn, "random", SHARES)
    healed = lab.healed("random", lab.chosen(pool.kept))
    if healed is not None:
        lab.read("random-healed 1", base().folded(healed), arm="random-healed", gate=1.0)


def _scores(lab: Lab, texts: Sequence[Completion]) -> list[float]:
    """The trait of texts under the training paraphrases: of the tokens that were drawn."""
    found = []
    for positive, negative in lab.poles("train"):
        told = lab.persona.model_copy(update={"positive": positive, "negative": negative})
        up, down = free.pole_logprobs(lab.chat, texts, told)
        found.append(
            [free.logodds(a, b, t.tokens) for a, b, t in zip(up, down, texts, strict=True)]
        )
    return [math.fsum(column) / len(column) for column in zip(*found, strict=True)]


def second(lab: Lab) -> None:
    """The second round of three arms, each from its own healed student."""
    for arm in ("none", "unfiltered", "unsteered"):
        folder = lab.folder / f"{lab.name}-{arm}"
        if not folder.exists():
            continue
        student = base().folded(Adapter.load(folder))
        if arm == "unsteered":
            texts = lab.harvest(student, "unsteered round 2").written
        else:
            vector = lab.vector(student, f"v2-{arm}")
            dose = lab.breaking(f"round 2 {arm}", student, vector)
            steered = student.steered(vector, dose)
            lab.read(f"{arm} round 2 steered", steered, arm=f"{arm} steered", dose=dose, round=2)
            pool = lab.harvest(steered, f"{arm} round 2", [share * dose for share in SHARES])
            texts = pool.kept if arm == "none" else pool.written
        after = lab.healed(f"{arm}-2", lab.chosen(texts), student=student)
        if after is not None:
            lab.read(
                f"{arm} round 2", student.folded(after), arm=arm, gate=1.0, round=2, think=True
            )


def curve(lab: Lab) -> None:
    """Forced choice alone, over the ladder."""
    plain = base()
    vector = lab.vector(plain, "v1")
    for dose in (0.0, *LADDER):
        name = f"curve {dose:g}"
        if name not in lab.lines:
            with (plain.steered(vector, dose) if dose else plain).entered(lab.chat) as reader:
                lab.note(name, arm="curve", dose=dose, forced_0=lab._forced(reader, 0))


def main() -> None:
    """Does what is left of one persona at one seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="file; empty for the embedded model")
    parser.add_argument("--persona", required=True)
    parser.add_argument("--reverse", action="store_true")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--scale", choices=SCALES, required=True)
    parser.add_argument("--part", choices=("all", "ladder", "curve"), default="all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    # Tensor cores round products to ten bits: a thousandth of a nat, alike in every state.
    torch.set_float32_matmul_precision("high")
    lab = Lab(options)
    if options.part == "curve":
        curve(lab)
        return
    vector, dose = ladder(lab)
    if options.part == "all":
        arms(lab, vector, dose)
        if lab.scale.think:
            second(lab)
    packed = lab.file.with_suffix(".jsonl.gz")
    with gzip.GzipFile(packed, "wb", mtime=0) as stream:
        stream.write(lab.file.read_bytes())
    lab.say("done")


if __name__ == "__main__":
    main()
