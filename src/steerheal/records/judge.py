"""Whether a judge may be believed: how well it tells replies that were labelled by reading."""

from steerheal.records.base import Record

LEAST = 0.80
"""AUC within a group from which on a judge counts as a reading of coherence."""


class Admission(Record):
    """How well a judge tells coherent replies."""

    judge: str
    fingerprint: str
    auc: float
    """Within groups, weighted by their pairs."""
    replies: int

    @property
    def admitted(self) -> bool:
        """Whether its reading counts."""
        return self.auc >= LEAST

    def words(self) -> str:
        """One sentence for people."""
        verdict = "admitted" if self.admitted else "not admitted, and shown without counting"
        return (
            f"judge {self.judge}: AUC {self.auc:.2f} within dose on {self.replies} labelled "
            f"replies, of {LEAST:.2f} that it needs: {verdict}"
        )
