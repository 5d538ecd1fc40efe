"""Since when GrpcServices have had no Pod at all, to tell a gap in a rollout from a selector that is wrong.

What has been told of is known from the status too, so that another leader neither forgets to tell nor tells again.

Pure: `now` is any monotonic clock's seconds. UIDs are those of GrpcServices.
"""

import math

# A Deployment with the strategy Recreate has Pods again within a second or two, as one that is restored; arbitrary.
VACANT_SECONDS = 30.0


class Vacancies:
    """Who has no Pod, and for whom that has lasted so long that it is told."""

    def __init__(self, patience_seconds: float = VACANT_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._due: dict[str, float] = {}
        self._long: set[str] = set()
        self._told: set[str] = set()

    def note(self, uid: str, now: float, *, is_vacant: bool, was_told: bool = False) -> None:
        """Take whether a GrpcService has no Pod now, and whether somebody has told so before us."""
        if not is_vacant:
            self.forget(uid)
        elif was_told:
            self._due.pop(uid, None)
            self._long.add(uid)
            self._told.add(uid)
        elif uid not in self._long:
            self._due.setdefault(uid, now + self._patience_seconds)

    def is_long(self, uid: str) -> bool:
        """Say whether a GrpcService has had no Pod for long."""
        return uid in self._long

    def is_told(self, uid: str) -> bool:
        """Say whether that has been told."""
        return uid in self._told

    def note_told(self, uid: str) -> None:
        """Take it that it has been told of one."""
        if uid in self._long:
            self._told.add(uid)

    def tell_again(self, uid: str, at: float) -> None:
        """Let one be taken again later: telling has failed."""
        if uid in self._long:
            self._due[uid] = at

    def take(self, now: float) -> list[str]:
        """Return those for whom it has just become long, or is to be told again; else each once, until it has Pods."""
        due = [uid for uid, at in self._due.items() if at <= now]
        for uid in due:
            del self._due[uid]
        self._long.update(due)
        return due

    def next_at(self) -> float:
        """Say when the next one is due; infinity: never."""
        return min(self._due.values(), default=math.inf)

    def forget(self, uid: str) -> None:
        """Drop one that is gone, or has Pods."""
        self._due.pop(uid, None)
        self._long.discard(uid)
        self._told.discard(uid)

    def clear(self) -> None:
        """Drop all, as whoever does not report any more does not hear of changes either."""
        self._due.clear()
        self._long.clear()
        self._told.clear()
