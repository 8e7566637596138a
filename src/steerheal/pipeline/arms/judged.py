"""What a judge of another model makes of an arm's answers, once every arm has been read."""

from steerheal.console import Console
from steerheal.measure.readings.judged import with_judged
from steerheal.personas import Persona
from steerheal.pipeline.arms.reading import Read
from steerheal.pipeline.judgement import staged
from steerheal.pipeline.judging import Once
from steerheal.pipeline.stage_store import Store


def judged(
    read: Read, store: Store, by: Once, persona: Persona, *, title: str, console: Console
) -> Read:
    """The arm at a seed with the judge's rows at every point: one stage, in the arm's folder.

    Args:
        read: What was read of it; it has points.
        store: The arm's.
        by: The judge. No other model should be in memory.
        persona: The comparison's.
        title: Of the bar.
        console: Who shows it.

    Raises:
        UserError: the judge cannot be loaded, or is another one by now.
    """
    said = [row.completion for point in read.points for row in point.scores.persona]
    rows = iter(staged(said, store, by, persona, title=title, console=console))
    points = []
    for point in read.points:
        own = [next(rows) for _ in point.scores.persona]
        scores = with_judged(point.scores, own, admitted=by.found.admitted)
        points.append(point._replace(scores=scores))
    return read._replace(points=tuple(points))
