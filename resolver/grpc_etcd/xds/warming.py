"""Which endpoints of a service are new to this client, and which share of their weight they have. Pure.

The time is the caller's: any clock that never goes back, in seconds. Shares grow in steps, since each step is an update
of the whole set for gRPC.
"""

import math
from collections.abc import Iterable

from grpc_etcd.registry.policy import SlowStart

_STEPS = 10  # arbitrary: a step of a tenth is hardly seen in the calls, and costs ten updates for an endpoint


class Warming:
    """Of one service. Endpoints of its first set are warm; one that goes and comes again is new."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._has_begun = False

    def note(self, addresses: Iterable[str], now: float) -> None:
        """Take the set that there is now."""
        born = now if self._has_begun else -math.inf
        self._since = {address: self._since.get(address, born) for address in addresses}
        self._has_begun = self._has_begun or bool(self._since)

    def shares(self, wish: SlowStart | None, now: float) -> dict[str, float]:
        """Return the share of each address that has not its whole weight; above 0 and below 1."""
        if wish is None:
            return {}
        steps = {address: self._step(wish, since, now) for address, since in self._since.items()}
        warming = {address: step for address, step in steps.items() if step < _STEPS}
        if len(warming) == len(steps) and len(set(warming.values())) == 1:
            return {}  # all have the same share, whatever it is
        least = wish.min_weight_percent / 100
        return {address: least + (1 - least) * step / _STEPS for address, step in warming.items()} if least < 1 else {}

    def due(self, wish: SlowStart | None, now: float) -> float:
        """Return when the shares change next; infinity: never."""
        if wish is None:
            return math.inf
        length = wish.window_seconds / _STEPS
        ages = (now - since for since in self._since.values())
        return min(
            (now - age + length * (int(age / length) + 1) for age in ages if age < wish.window_seconds),
            default=math.inf,
        )

    @staticmethod
    def _step(wish: SlowStart, since: float, now: float) -> int:
        return int(min(1.0, (now - since) / wish.window_seconds) * _STEPS)
