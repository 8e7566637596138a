"""What was read of arms, as records: their points against the base, and what sets them apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from steerheal.config.comparing import BASE, ArmSettings, CompareSettings
from steerheal.measure import curves, sight, summary
from steerheal.measure.curves import Drawn
from steerheal.measure.readings import table
from steerheal.measure.readings.table import Entry
from steerheal.measure.stats import holm, p_value
from steerheal.personas import Axis
from steerheal.pipeline.arms.lasting import persisted
from steerheal.pipeline.arms.reading import Read, Reads, kind_of, says
from steerheal.records import DosePoint, Reading, Scores, Sight, Sweep
from steerheal.records.comparing import ArmPoint, ArmRecord, Contrast, Persisted, Place

At = Literal["damage", "KL"]


@dataclass(frozen=True)
class Standing:
    """Arms that were read, and how they stand to each other."""

    arms: Sequence[ArmSettings]
    settings: CompareSettings
    axis: Axis
    reads: Reads

    @cached_property
    def seeds(self) -> list[int]:
        """Those at which every arm was read, in order; an arm that could not be made was."""
        every = dict.fromkeys(seed for seed, _ in self.reads)
        return [s for s in every if all((s, arm.name) in self.reads for arm in self.arms)]

    def records(self) -> list[ArmRecord]:
        """Every arm that was read at any seed."""
        return [self._record(arm) for arm in self.arms if self._of(arm.name)]

    def contrasts(self) -> list[Contrast]:
        """Every arm less ours, at equal damage and at equal KL, over the seeds that are whole."""
        ours = self.settings.ours
        others = [arm.name for arm in self.arms if arm.name not in (BASE, ours)]
        if not self.seeds or ours not in {arm.name for arm in self.arms}:
            return []
        return [*self._family("damage", others), *self._family("KL", others)]

    def persisted(self) -> list[Persisted]:
        """What is left of the trait under other conditions, at the seeds that are whole."""
        found = {
            (seed, name): read.lasting
            for (seed, name), read in self.reads.items()
            if read.lasting is not None and seed in self.seeds
        }
        return persisted(found, self.settings)

    def sight(self) -> Sight | None:
        """Which readings of coherence see damage, by the hooks' largest doses at the first seed."""
        found = []
        for arm in self.arms:
            control = arm.kind == "random"
            read = self.reads.get((self.first, arm.name))
            if read is None or not read.points or not (control or arm.kind == "steered"):
                continue
            last = read.points[-1]
            found.append(
                DosePoint.of(self._summary(last.scores, self.first), last.at, control=control)
            )
        return sight.sight(Sweep(points=tuple(found), base_perplexity=np.nan))

    @property
    def first(self) -> int:
        """The first seed."""
        return min(seed for seed, _ in self.reads)

    def _of(self, name: str) -> list[Read]:
        return [read for (_, arm), read in self.reads.items() if arm == name]

    def _base(self, seed: int) -> Scores:
        return self.reads[seed, BASE].points[0].scores

    def _summary(self, scores: Scores, seed: int) -> summary.Summary:
        return summary.summarise(scores, self._base(seed), self.axis)

    def _record(self, arm: ArmSettings) -> ArmRecord:
        kind, found = kind_of(arm), self._of(arm.name)
        trait, kl = self._entry(self.settings.trait), table.headed("distance")
        points = []
        for read in found:
            seed = read.spent.seed
            for point in read.points:
                rows = curves.changes(point.scores, self._base(seed), (trait, kl), self.axis)
                points.append(
                    ArmPoint(
                        seed=seed,
                        at=point.at,
                        state=point.state.name,
                        read=self._summary(point.scores, seed),
                        eta=curves.over([rows], curves.eta),
                        fisher=read.served if point is read.points[-1] else None,
                    )
                )
        return ArmRecord(
            arm=arm,
            says=says(arm),
            along=kind.along,
            family=kind.family,
            points=tuple(points),
            curve=self._places(arm),
            spent=tuple(read.spent for read in found if read.points),
            unmade={read.spent.seed: read.unmade for read in found if read.unmade},
            shown=next((read.shown for read in found if read.shown), ()),
        )

    def _places(self, arm: ArmSettings) -> tuple[Place, ...]:
        """The arm's curve over all whole seeds; empty where one of them lacks it."""
        if not self.seeds or any(self.reads[seed, arm.name].unmade for seed in self.seeds):
            return ()
        names = (self.settings.trait, self.settings.damage)
        entries = (*map(self._entry, names), table.headed("distance"))
        rows = self._rows(arm.name, entries)
        found = []
        for i, point in enumerate(self.reads[self.first, arm.name].points):
            here = [one[:, i] for one in rows]
            trait, damage, kl = (
                curves.over([one[:, c] for one in here], curves.average) for c in range(3)
            )
            eta = curves.over([one[:, ::2] for one in here], curves.eta)
            found.append(Place(at=point.at, trait=trait, damage=damage, kl=kl, eta=eta))
        return tuple(found)

    def _rows(self, name: str, entries: Sequence[Entry]) -> list[curves.Floats]:
        """Changes from the base of an arm's points at every whole seed, [n, P, len(entries)]."""
        return [
            np.stack(
                [
                    curves.changes(point.scores, self._base(seed), entries, self.axis)
                    for point in self.reads[seed, name].points
                ],
                axis=1,
            )
            for seed in self.seeds
        ]

    def _family(self, at: At, others: Sequence[str]) -> list[Contrast]:
        found = {name: self._contrast(name, at) for name in others}
        values = [p_value(reading) for reading in found.values()]
        return [
            Contrast(
                arm=name,
                ours=self.settings.ours,
                at=at,
                reading=reading,
                p=p,
                adjusted=adjusted,
            )
            for (name, reading), p, adjusted in zip(
                found.items(), values, holm(values), strict=True
            )
        ]

    def _contrast(self, name: str, at: At) -> Reading:
        for arm in (name, self.settings.ours):
            for seed in self.seeds:
                if why := self.reads[seed, arm].unmade:
                    return Reading.unknown(f"{arm} at seed {seed}: {why}")
        names = (self.settings.trait, *((self.settings.damage,) if at == "damage" else ()))
        waiting = [one for one in map(self._entry, names) if one.judged and not self._judged(one)]
        if waiting:
            return Reading.unknown(f"{waiting[0].title}: the judge reads once every arm is read")
        return curves.at_equal(self._drawn(name, at), self._drawn(self.settings.ours, at))

    def _judged(self, entry: Entry) -> bool:
        """Whether the judge has read its answers."""
        return len(entry.units(self._base(self.first), self.axis)) > 0

    def _drawn(self, name: str, at: At) -> list[Drawn]:
        """The arm's curve at every whole seed."""
        equal = self._entry(self.settings.damage) if at == "damage" else table.headed("distance")
        curve = bool(kind_of(next(arm for arm in self.arms if arm.name == name)).along)
        rows = self._rows(name, (self._entry(self.settings.trait), equal))
        return [Drawn(one, curve) for one in rows]

    @staticmethod
    def _entry(name: str) -> Entry:
        return table.listed([name])[0]
