"""Why one registry cannot be written to just now, and when that is tried again."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from grpc_etcd.etcd.errors import EtcdError, NoSpace
from grpc_etcd_operator.core.backoff import Backoff

BACKOFF = Backoff((0.05, 0.1, 0.2, 0.5, 1.0))


@dataclass(slots=True)
class Trouble:
    """Why nothing can be written just now, and when to try again. `on_change` is told when it begins and ends."""

    on_change: Callable[[], None]
    error: EtcdError | None = None
    failures: int = 0
    until: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, error: EtcdError) -> None:
        """Count a failure that says nothing of the registry as a whole."""
        name = type(error).__name__
        self.counts[name] = self.counts.get(name, 0) + 1

    def note(self, error: EtcdError) -> bool:
        """Take a failure; the pause grows with each in a row. Say whether it is the first of its kind."""
        self.count(error)
        is_new, began, self.error = type(self.error) is not type(error), self.error is None, error
        self.failures += 1
        self.until = time.monotonic() + BACKOFF.after(self.failures)
        if began:
            self.on_change()
        return is_new

    def end(self, *, has_put: bool = True) -> None:
        """Take a success. One that has put nothing ends no lack of space."""
        if isinstance(self.error, NoSpace) and not has_put:
            return
        ended, self.error, self.failures = self.error is not None, None, 0
        if ended:
            self.on_change()
