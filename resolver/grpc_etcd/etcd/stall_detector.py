"""How long a read of a watch stream may take: after a silence the stream is asked, and if it owes an answer given up.

No I/O: one side notes when it begins and ends to read, the other (a guard beside it) asks what is due. A consumer may
take its time between reads.
"""

from grpc_etcd.etcd.renewing import ANSWER_SECONDS


class StallDetector:
    """The patience with one stream. All times are in seconds, on one clock."""

    def __init__(self, progress_seconds: float) -> None:
        self._progress_seconds = progress_seconds
        self._soon = min(progress_seconds, ANSWER_SECONDS / 2)
        self._has_begun = False
        self._asked_at = 0.0
        self._owing: float | None = None
        self.waiting_since: float | None = None

    def begin(self, now: float) -> None:
        """Record that a read begins."""
        self.waiting_since = now

    def end(self, *, replied: bool) -> None:
        """Record that a read has ended."""
        self.waiting_since = None
        self._has_begun = self._has_begun or replied

    @property
    def is_owed(self) -> bool:
        """Whether the read must end soon: etcd answers at once a new watch, and one that was asked for its progress."""
        return not self._has_begun or (self._owing is not None and self.waiting_since == self._owing)

    def left(self, now: float) -> float:
        """Return after how many seconds to look again; 0 when a read has lasted too long."""
        since = self.waiting_since
        if since is None:
            return self._soon
        longest = ANSWER_SECONDS if self.is_owed else self._progress_seconds
        return max(0.0, min(self._soon, max(since, self._asked_at) + longest - now))

    def note_asked(self, now: float) -> None:
        """Record that etcd is asked whether there is anything to report."""
        self._asked_at = now

    def owe(self, since: float) -> None:
        """Record that there is, and that the stream was asked for it in the read that began at `since`."""
        self._owing = since
