"""A heal's steps and epochs: what is minimised, and what is measured by the way."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerheal.config import HealSettings
from steerheal.heal.barrier import PositionLosses, hinge_weights, position_losses
from steerheal.heal.batches import Data, Micro, micro_batches, states_by_length
from steerheal.heal.checkpoint import Checkpoint, Place
from steerheal.heal.optimiser import Optimiser
from steerheal.heal.preference import Rivals, by_row
from steerheal.heal.spectral import Spectral
from steerheal.models.batch import all_or_none, out_of_memory, ran_out
from steerheal.models.model import ChatModel
from steerheal.ranks import lent, merged, share_of, told, world
from steerheal.records import HealStep
from steerheal.tables import NO_BARRIER

VECTORS = "spectral"
"""Name of the spectral penalty's vectors among a checkpoint's tensors."""


class Preferred(NamedTuple):
    """A step's preference: its loss, and the weight of every answer in its gradient."""

    loss: float
    weight: dict[int, float]

    def weights(self, micro: Micro) -> Float[Tensor, "N 1"]:
        """The weight of every position of a micro-batch."""
        each = torch.tensor([self.weight[row] for row in micro.rows])
        return each.repeat_interleave(torch.tensor(micro.lengths))[:, None]


class Aside(NamedTuple):
    """What a step holds on unrelated text."""

    anchor: float = math.nan
    """Mean KL(reference‖student) there; NaN without an anchor."""
    divergence: float = math.nan
    """The barrier's aggregated D there; NaN where it is on the text that is fitted."""
    barrier: float = 0.0
    """λ·relu(D − τ)."""
    held_back: float = 0.0
    """The squared size of its pull on the hidden states."""


class Weights(NamedTuple):
    """A barrier over several micro-batches."""

    operating: float
    barrier: float
    each: Sequence[Float[Tensor, " N"]]
    """Its derivative in every position's D, per micro-batch."""


class Trainer:
    """A training model, its optimiser, and what its steps minimise."""

    def __init__(
        self,
        chat: ChatModel,
        model: nn.Module,
        data: Data,
        settings: HealSettings,
        *,
        lam: float,
        rows: int,
        seed: int,
        anchor: Data | None = None,
        rivals: Rivals | None = None,
    ) -> None:
        """Around `model`, which is `chat` with its fresh adapter.

        Args:
            chat: The student.
            model: The same with trainable parameters.
            data: What is trained on.
            settings: Objective, barrier and optimiser.
            lam: λ of this round.
            rows: Completions that are trained on.
            seed: Of the spectral penalty's first vectors.
            anchor: Unrelated text with the reference's states on it; None where nothing is anchored
                there.
            rivals: What each completion is preferred to; None where nothing is.
        """
        self._rivals = rivals
        self._unrelated = anchor if settings.reads_unrelated else None
        self._chat, self._data, self._settings, self._lam = chat, data, settings, lam
        self._parts = self._least = settings.accumulate * world()
        """Micro-batches of a step: as many as were asked for, and more once memory has run out."""
        named = {name: item for name, item in model.named_parameters() if item.requires_grad}
        self._loop = Optimiser(named, settings, rows)
        self._spectral = Spectral(model, seed=seed) if settings.spectral else None

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on."""
        vectors = {} if self._spectral is None else {VECTORS: self._spectral.vectors}
        return self._loop.state() | vectors

    def resumed(self, checkpoint: Checkpoint, fresh: Place) -> Place:
        """Where to go on: the saved place with its state put back, or the fresh one."""
        saved = checkpoint.read(fresh.made_of)
        if saved is None:
            return fresh
        if not self._loop.fits(saved.tensors):
            checkpoint.note(f"heal · {checkpoint.path} fits another adapter: starting over")
            return fresh
        self._loop.restore(saved.tensors, len(saved.place.steps))
        if self._spectral is not None:
            self._spectral.vectors = saved.tensors[VECTORS].to(self._chat.device)
        return saved.place.model_copy(update={"digest": ""})

    def epoch(
        self, place: Place, steps: list[list[int]], progress: Callable[[HealStep, int], None]
    ) -> tuple[Place, str]:
        """One pass; the place after it, and why it was broken off, if it was."""
        for rows in steps:
            rows = self._rivals.both(rows) if self._rivals else rows
            step, micros = self._step(rows, len(place.steps), place.epochs)
            place = place.model_copy(
                update={
                    "steps": (*place.steps, step),
                    "used": place.used + sum(micro.used for micro in micros),
                    "read": place.read + sum(micro.read for micro in micros),
                }
            )
            progress(step, self._loop.total)
            if broken := self._not_finite(step):
                return place, f"step {step.step + 1} of {self._loop.total} was not finite: {broken}"
        return place, ""

    def _not_finite(self, step: HealStep) -> str:
        """Which numbers of a step are not finite; a divergence that nothing depends on may be."""
        numbers = {"fit": step.ce, "gradient": step.gradient}
        if self._settings.anchor:
            numbers["anchor"] = step.anchor
        if self._settings.barred and self._lam:
            numbers["divergence"] = step.divergence
        return ", ".join(name for name, value in numbers.items() if not math.isfinite(value))

    def _step(self, rows: list[int], number: int, epoch: int) -> tuple[HealStep, list[Micro]]:
        """One optimiser step over its rows, and the micro-batches that they were read in.

        Where memory runs out, on whichever process, there are twice as many of them, in the steps
        that follow as well.
        """
        vectors = self._spectral.vectors if self._spectral else None
        while True:
            micros = micro_batches(self._chat, self._data, rows, self._parts)
            try:
                step = self._gradients(micros, number, epoch)
                break
            except RuntimeError as error:
                if len(micros) == len(rows) or not out_of_memory(error):
                    raise
            self._loop.forget()
            if self._spectral and vectors is not None:
                self._spectral.vectors = vectors
            self._parts = 2 * len(micros)
            ran_out(math.ceil(len(rows) / self._parts))
        return step.model_copy(update={"gradient": self._loop.apply()}), micros

    def _gradients(self, micros: list[Micro], number: int, epoch: int) -> HealStep:
        """The gradients of a step over its micro-batches, before the update.

        The aggregate is over the whole step. With several micro-batches its derivative is known
        only once all of them are read, so that they are run forward twice.
        """
        settings, chat = self._settings, self._chat
        count = sum(len(micro.targets) for micro in micros)
        fits = max(1, sum(micro.fits for micro in micros))
        barred = settings.barred_fit
        twice = barred and len(micros) > 1
        own = share_of(range(len(micros)))
        divergences = self._all_divergences(micros) if twice else []
        preferred = self._preferred(micros) if self._rivals else None
        starts = [0, *accumulate(len(micro.targets) for micro in micros)]
        operating, barrier = math.nan, 0.0
        # The fit, and the squared size of both pulls on the hidden states.
        sums = torch.zeros(3, dtype=torch.float64)
        with all_or_none():
            for i in own:
                micro = micros[i]
                with torch.enable_grad():
                    states = micro.states(chat)
                losses = self._losses(micro, states)
                everything = torch.cat(divergences) if twice else losses.divergence
                operating, barrier, weights = hinge_weights(
                    settings.aggregate, everything, self._lam, settings.tau
                )
                mine = weights[starts[i] : starts[i + 1]] if twice else weights
                sums[0] += losses.fit.sum().item() / fits
                # In place: these two and their sum are as wide as the hidden states.
                weight = preferred.weights(micro) if preferred else torch.tensor(1 / fits)
                gradient = losses.fit_grad.float().mul_(weight.to(chat.device))
                held = losses.divergence_grad.float().mul_(mine[:, None])
                sums[1] += gradient.square().sum().item()
                sums[2] += held.square().sum().item()
                states.backward(gradient.add_(held).to(states.dtype))
        fit, pull, held_back = self._loop.joined(sums)
        operating, barrier = told((operating, barrier))
        fit = preferred.loss if preferred else fit
        aside = self._aside(number)
        if settings.barred_aside:
            operating, barrier, held_back = aside.divergence, aside.barrier, aside.held_back
        spectral = self._penalised()
        return HealStep(
            step=number,
            epoch=epoch,
            ce=fit,
            divergence=operating if settings.barred else math.nan,
            barrier=barrier,
            lr=self._loop.lr,
            gradient=math.nan,
            tokens=count,
            pressure=math.sqrt(held_back / pull) if settings.barred and pull else math.nan,
            spectral=spectral,
            anchor=aside.anchor,
        )

    def _aside(self, number: int) -> Aside:
        """What is held on this step's unrelated text, with its gradient added.

        The text is taken in turn, so that every step meets as much of it.
        """
        if self._unrelated is None:
            return Aside()
        settings, chat, text = self._settings, self._chat, self._unrelated
        count = min(settings.anchor_rows, len(text.pairs))
        rows = [(number * count + k) % len(text.pairs) for k in range(count)]
        micros = micro_batches(chat, text, rows, self._parts // self._least)
        tokens = sum(len(micro.targets) for micro in micros)
        found = Aside(anchor=0.0 if settings.anchor else math.nan)
        weights = self._weights_aside(micros) if settings.barred_aside else None
        with all_or_none():
            for i, micro in enumerate(micros):
                with torch.enable_grad():
                    states = micro.states(chat)
                gradient = torch.zeros_like(states, dtype=torch.float32)
                if settings.anchor:
                    losses = position_losses(chat, states, micro.targets, micro.reference, "kl_fwd")
                    gradient += losses.divergence_grad * (settings.anchor / tokens)
                    near = losses.divergence.sum().item() / tokens
                    found = found._replace(anchor=found.anchor + near)
                if weights is not None:
                    held = self._losses_aside(micro, states).divergence_grad
                    held = held * weights.each[i][:, None]
                    gradient += held
                    most = found.held_back + held.square().sum().item()
                    found = found._replace(held_back=most)
                states.backward(gradient.to(states.dtype))
        if weights is None:
            return found
        return found._replace(divergence=weights.operating, barrier=weights.barrier)

    def _weights_aside(self, micros: Sequence[Micro]) -> Weights:
        """The barrier of unrelated text, and its derivative in every D there."""
        settings = self._settings
        with all_or_none(), torch.no_grad():
            read = [self._losses_aside(m, m.states(self._chat)).divergence for m in micros]
        found = hinge_weights(settings.aggregate, torch.cat(read).cpu(), self._lam, settings.tau)
        # Every process reads the same text, and rounding must not let one alone pass the margin.
        operating, barrier, weights = told(found)
        parts = weights.to(self._chat.device).split([len(one) for one in read])
        return Weights(operating, barrier, parts)

    def _losses_aside(self, micro: Micro, states: Float[Tensor, "N D"]) -> PositionLosses:
        settings = self._settings
        return position_losses(
            self._chat, states, micro.targets, micro.reference, settings.barrier,
            off_label=settings.off_label,
        )  # fmt: skip

    def _penalised(self) -> float:
        """The mean operator norm, its penalty's gradient added; NaN without the penalty."""
        if self._spectral is None:
            return math.nan
        with all_or_none(), torch.enable_grad():
            norms = self._spectral.norms()
            (self._settings.spectral * norms.sum()).backward()
        return norms.mean().item()

    def _preferred(self, micros: Sequence[Micro]) -> "Preferred":
        """What the student prefers by now, and how far every answer is to be pulled."""
        assert self._rivals is not None
        logs = dict[int, float]()
        with all_or_none(), torch.no_grad():
            for micro in (micros[i] for i in share_of(range(len(micros)))):
                fit = self._losses(micro, micro.states(self._chat)).fit
                logs |= by_row(-fit, micro.rows, micro.lengths)
        logs = merged(logs)
        rows = [row for row in logs if row in self._rivals.of]
        tokens = sum(len(self._data.pairs[row][1]) for row in rows)
        return Preferred(*self._rivals.judged(logs, rows, tokens, self._settings))

    def _all_divergences(self, micros: Sequence[Micro]) -> list[Tensor]:
        """Every micro-batch's, whichever process reads it."""
        with all_or_none():
            own = {i: lent(self._divergences(micros[i])) for i in share_of(range(len(micros)))}
        found = merged(own)
        return [found[i].to(self._chat.device) for i in range(len(micros))]

    @torch.no_grad()
    def _divergences(self, micro: Micro) -> Float[Tensor, " N"]:
        return self._losses(micro, micro.states(self._chat)).divergence

    def _losses(self, micro: Micro, states: Float[Tensor, "N D"]) -> PositionLosses:
        losses = position_losses(
            self._chat,
            states,
            micro.targets,
            micro.reference,
            self._settings.barrier,
            objective=self._settings.objective,
            teacher=micro.teacher,
            taught_by=self._data.taught_by,
            off_label=self._settings.off_label,
        )
        for weight in (micro.fitted, micro.advantages):
            if weight is not None:
                fit_grad = losses.fit_grad * weight[:, None]
                losses = replace(losses, fit=losses.fit * weight, fit_grad=fit_grad)
        return losses

    @torch.no_grad()
    def held_out(self, rows: Sequence[int]) -> float:
        """Mean fit per fitted token of these rows; NaN when there are none."""
        if not rows:
            return math.nan
        if self._rivals is not None:
            both = self._rivals.both(rows)
            return self._preferred(micro_batches(self._chat, self._data, both, len(rows))).loss
        chat, data = self._chat, self._data
        ordered, states = states_by_length(chat, data, rows)
        targets = [token for i in ordered for token in data.pairs[i][1]]
        teacher = None
        if data.teacher is not None:
            teacher = torch.cat([data.teacher[i] for i in ordered]).to(chat.device)
        fit = position_losses(
            chat, states, torch.tensor(targets, device=chat.device), None, NO_BARRIER,
            objective=self._settings.objective, teacher=teacher, taught_by=data.taught_by,
        ).fit  # fmt: skip
        if (pulls := data.by_target(ordered, chat.device)) is not None:
            fit = fit * pulls
        if data.fitted is not None:
            fit = fit[torch.cat([data.fitted[i] for i in ordered]).to(fit.device)]
        return fit.mean().item()
