"""The picture of a search: trait against damage, trial by trial, with the front and its knee."""

from matplotlib.figure import Figure

from steerheal.measure.readings.table import listed
from steerheal.records.tuning import TuneRecord
from steerheal.report.draw import CARD, GREY, INK, RED, key, level, line, note, sheet, styled

MARK = "#00805e"


def figure(record: TuneRecord) -> Figure:
    """Every trial whose round was read, with 95 % intervals; the front joined, the knee ringed."""
    (trait,), (damage,) = (
        listed([name]) for name in (record.settings.trait, record.settings.damage)
    )
    with styled():
        drawing, (axes,) = sheet(5.5)
        level(axes, 0.0)
        level(axes, 0.0, vertical=True)
        read = [one for one in record.trials if one.trait and one.damage]
        for one in read:
            assert one.trait and one.damage
            at, up = one.damage.value, one.trait.value
            axes.hlines(up, one.damage.low, one.damage.high, color=GREY, lw=1, alpha=0.5)
            axes.vlines(at, one.trait.low, one.trait.high, color=GREY, lw=1, alpha=0.5)
            colour = MARK if one.number in record.front else GREY
            axes.plot(at, up, "o", color=colour, ms=12, mec=CARD, mew=0.8, zorder=4)
            said = {"color": CARD, "size": 7, "ha": "center", "va": "center", "zorder": 5}
            axes.annotate(str(one.number + 1), (at, up), **said)
            if one.number == record.knee:
                axes.plot(at, up, "o", mfc="none", mec=RED, mew=1.8, ms=19, zorder=5)
        best = sorted(one.point for one in read if one.number in record.front and one.point)
        axes.plot([-y for _, y in best], [x for x, _ in best], color=INK, lw=1, ls="--", zorder=2)
        if not read:
            note(axes, "no trial was read to its end")
        axes.set_title(f"{record.name}: {len(read)} of {len(record.trials)} trials read")
        axes.set_xlabel(f"damage: {damage.title}, change ({damage.difference_unit})")
        axes.set_ylabel(f"trait: {trait.title}, change ({trait.difference_unit})")
        axes.margins(0.1, 0.12)
        marks = [
            ("on the front", line("", MARK, "o")),
            ("beaten", line("", GREY, "o")),
            ("Pareto front", line("--", INK)),
            ("knee", line("", RED, "o", hollow=True)),
        ]
        key(drawing, marks)
    return drawing
