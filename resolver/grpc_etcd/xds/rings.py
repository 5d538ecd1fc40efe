"""How fast the rings of a service may follow each other, so that those that gRPC keeps take a bounded memory. Pure.

Each change of a service with ring hash is a new ring (see `localities`), and gRPC keeps a ring that it has left for 15
minutes, whatever its name: some 8 kB for each endpoint (measured with grpcio 1.85.3, none of them reachable). The first
changes go out as fast as any; the more is kept, the longer changes are gathered. A cluster that leaves the routes (see
`service.Turns`) is kept in the same way, and counts as a ring.

The time is the caller's: any clock that never goes back, in seconds.
"""

from collections import deque

_KEPT_SECONDS = 900.0  # gRPC's own, of a locality that is in no set any more
_MOST_KEPT = 20_000  # arbitrary: endpoints in all rings that are kept when they change forever, some 160 MB
_LEAST = 5  # what an empty ring takes, in endpoints
_LONGEST_PAUSE_SECONDS = 5.0  # arbitrary: an endpoint that has gone is in the ring no longer than this


class Rings:
    """Of one service: the rings that gRPC still keeps."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, int]] = deque()  # since when, and of how many endpoints
        self._endpoints = 0

    def pause_seconds(self, size: int, now: float) -> float:
        """Record of another ring of so many endpoints; return how long the next one has to wait."""
        size += _LEAST
        self._kept.append((now, size))
        self._endpoints += size
        while self._kept[0][0] < now - _KEPT_SECONDS:
            self._endpoints -= self._kept.popleft()[1]
        sustainable = _KEPT_SECONDS * size / _MOST_KEPT  # at this pace they are as many
        return min(_LONGEST_PAUSE_SECONDS, sustainable * self._endpoints / _MOST_KEPT)
