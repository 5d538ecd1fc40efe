"""How long to hold back after a refusal, so that an API server in trouble is not asked again and again. No clock.

Two kinds: the identity was refused (401), which concerns every request alike, and the API server asked to come later
(429 or 503 with Retry-After), which concerns the session that was told so. Times are monotonic seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from grpc_etcd_operator.core.backoff import Backoff

# After the first refusal at once, since a new token is read then; in the end about once a second.
BACKOFF = Backoff((0.0, 0.25, 0.5, 1.0), jitter=0.5)  # many replicas are not to come at once
LONGEST_HOLD_SECONDS = 30.0  # arbitrary: whoever is told more asks once in a while all the same
_LATER = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


@dataclass(slots=True)
class Refusals:
    """Lets one request at a time find out whether a refused identity is taken again."""

    count: int = 0
    next_at: float = 0.0

    def may_ask(self, now: float) -> bool:
        """Say whether a request may be sent; after a refusal one may, and the others wait for its outcome."""
        if not self.count:
            return True
        if now < self.next_at:
            return False
        self.next_at = now + BACKOFF.pauses[-1]
        return True

    def note(self, now: float, chance: float, *, refused: bool) -> None:
        """Take a request's outcome; `chance` is a random number from 0 to 1."""
        if not refused:
            self.count = 0
            return
        self.count += 1
        self.next_at = now + BACKOFF.after(self.count, chance)


def hold_seconds(status: int, headers: Mapping[str, str]) -> float:
    """Return for how long an answer asks not to be asked again; 0 if it does not."""
    text = headers.get("Retry-After", "") if status in _LATER else ""
    return min(float(text), LONGEST_HOLD_SECONDS) if text.isascii() and text.isdigit() else 0.0
