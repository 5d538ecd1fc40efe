"""Which services the clients of an ADS server for others may follow: each costs memory, and anybody may name any. Pure.

A client is an address, since whoever wants more would open more streams. What several clients follow counts once in
all, and what several streams of a client do counts once for it.
"""

from collections import Counter
from typing import NamedTuple

from grpc_etcd.xds.names import ServiceName

MOST_PER_CLIENT = 2_000  # arbitrary: 30 MB
MOST_IN_ALL = 10_000  # arbitrary: 150 MB
MOST_NAMES = 50_000  # of resources in one request; arbitrary: a service has a few, and more with many routes


class Limits(NamedTuple):
    """How many services one client may follow, and all together."""

    per_client: int = MOST_PER_CLIENT
    in_all: int = MOST_IN_ALL


class Admission:
    """Counts who follows what. For one thread."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._of_client: dict[str, Counter[ServiceName]] = {}
        self._all: Counter[ServiceName] = Counter()

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, client: str, owner: ServiceName) -> bool:
        """Count one more stream that follows a service; False: it may not."""
        mine = self._of_client.get(client, Counter())
        if owner not in mine and len(mine) >= self.limits.per_client:
            return False
        if owner not in self._all and len(self._all) >= self.limits.in_all:
            return False
        self._of_client[client] = mine
        mine[owner] += 1
        self._all[owner] += 1
        return True

    def release(self, client: str, owner: ServiceName) -> None:
        """Undo `admit`."""
        mine = self._of_client[client]
        for counts in (mine, self._all):
            counts[owner] -= 1
            if not counts[owner]:
                del counts[owner]
        if not mine:
            del self._of_client[client]

    def room(self, client: str) -> int:
        """Return how many more services a client may follow."""
        mine = self._of_client.get(client, ())
        return max(0, min(self.limits.per_client - len(mine), self.limits.in_all - len(self._all)))


def client_of(peer: str, stream: object) -> str:
    """Return who is at the other end, by gRPC's name of a peer; behind a unix socket each stream is another client."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else f"{kind}:{id(stream)}"
