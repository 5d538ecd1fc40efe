"""How long to pause before something is tried again. Whoever retries has one of these; nobody counts pauses by hand."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pauses after failures in a row, in seconds; the last one stays. At most the share `jitter` is added."""

    pauses: tuple[float, ...]
    jitter: float = 0.0

    def after(self, failures: int, chance: float = 0.0) -> float:
        """Return the pause after so many failures in a row (at least 1); `chance` is a random number from 0 to 1."""
        return self.pauses[min(failures, len(self.pauses)) - 1] * (1 + self.jitter * chance)
