"""Which GrpcServices wait for their claims to be written, and in which order they are served. Pure.

    accepted with this very spec before  -> first: its name is its own, and the settings have changed, as the prefix
    holds nothing yet                    -> then, the oldest object first
    holds something and asks for more    -> last, whoever has asked first

Were the last not last, nobody else would ever get a turn beside a tenant that renames old objects on and on.
"""

from collections.abc import Iterator, Mapping
from heapq import heappop, heappush

from grpc_etcd_operator.core.claims import read_claims
from grpc_etcd_operator.core.services import GrpcService

Turn = tuple[int, int, str, str]
SLACK = 100  # arbitrary


class Asking(Mapping[str, GrpcService]):
    """Those that ask, by UID."""

    def __init__(self) -> None:
        self._services: dict[str, GrpcService] = {}
        self._turns: dict[str, Turn] = {}
        self._queue: list[tuple[Turn, str]] = []
        self._last = 0

    def __getitem__(self, uid: str) -> GrpcService:
        return self._services[uid]

    def __iter__(self) -> Iterator[str]:
        return iter(self._services)

    def __len__(self) -> int:
        return len(self._services)

    def note(self, service: GrpcService) -> None:
        """Take one in, or what it says now; it keeps its turn."""
        is_new = service.uid not in self._services
        self._services[service.uid] = service
        if is_new:
            self.wait_again(service.uid)
        if len(self._queue) > 2 * len(self._services) + SLACK:  # those that another replica has served
            self._queue = sorted((turn, uid) for uid, turn in self._turns.items())

    def forget(self, uid: str) -> None:
        """Take out one that asks no more."""
        self._services.pop(uid, None)
        self._turns.pop(uid, None)

    def next(self) -> str | None:
        """Take the next one whose turn it is; None: there is none."""
        while self._queue:
            _, uid = heappop(self._queue)
            if uid in self._services:
                return uid
        return None

    def wait_again(self, uid: str) -> None:
        """Let one that still asks be taken by `next` again, after all of its kind that ask already."""
        if service := self._services.get(uid):
            self._last += 1
            self._turns[uid] = self._turn_of(service)
            heappush(self._queue, (self._turns[uid], uid))

    def _turn_of(self, service: GrpcService) -> Turn:
        if not read_claims(service.status):
            return 1, 0, *service.age_order
        return (0, 0, *service.age_order) if service.was_accepted else (2, self._last, *service.age_order)
