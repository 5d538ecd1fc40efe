"""Since when GrpcServices have had no Pod at all, to distinguish a gap in a rollout from a selector that is wrong.

What has been reported of is known from the status too, so that another leader neither forgets to report nor reports
again.

Pure: `now` is any monotonic clock's seconds. UIDs are those of GrpcServices.
"""

import math

# A Deployment with the strategy Recreate has Pods again within a second or two, as one that is restored; arbitrary.
VACANT_SECONDS = 30.0


class Vacancies:
    """Who has no Pod, and for whom that has lasted so long that it is reported."""

    def __init__(self, patience_seconds: float = VACANT_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._due: dict[str, float] = {}
        self._long: set[str] = set()
        self._reported: set[str] = set()

    def note(self, uid: str, now: float, *, is_vacant: bool, was_reported: bool = False) -> None:
        """Take whether a GrpcService has no Pod now, and whether somebody has reported so before us."""
        if not is_vacant:
            self.forget(uid)
        elif was_reported:
            self._due.pop(uid, None)
            self._long.add(uid)
            self._reported.add(uid)
        elif uid not in self._long:
            self._due.setdefault(uid, now + self._patience_seconds)

    def is_long(self, uid: str) -> bool:
        """Return whether a GrpcService has had no Pod for long."""
        return uid in self._long

    def is_reported(self, uid: str) -> bool:
        """Return whether that has been reported."""
        return uid in self._reported

    def note_reported(self, uid: str) -> None:
        """Record that it has been reported of one."""
        if uid in self._long:
            self._reported.add(uid)

    def report_again(self, uid: str, at: float) -> None:
        """Let one be taken again later: reporting has failed."""
        if uid in self._long:
            self._due[uid] = at

    def take(self, now: float) -> list[str]:
        """Return those for whom it has just become long, or is to be reported again.

        Else each once, until it has Pods.
        """
        due = [uid for uid, at in self._due.items() if at <= now]
        for uid in due:
            del self._due[uid]
        self._long.update(due)
        return due

    def next_at(self) -> float:
        """Return when the next one is due; infinity: never."""
        return min(self._due.values(), default=math.inf)

    def forget(self, uid: str) -> None:
        """Drop one that is gone, or has Pods."""
        self._due.pop(uid, None)
        self._long.discard(uid)
        self._reported.discard(uid)

    def clear(self) -> None:
        """Drop all, as whoever does not report any more does not learn of changes either."""
        self._due.clear()
        self._long.clear()
        self._reported.clear()
