"""GrpcServices that were reported deleted: whether on purpose, or with their CRD, is found out after a moment."""

import asyncio
import time

from grpc_etcd.layouts.rate_limits import choose_in_turns
from grpc_etcd_operator.core.services import GrpcService

DELAY_SECONDS = 1.0


class Deletions:
    """What event handlers have been reported of and the resync judges.

    `waiting` has when, by UID (monotonic seconds).
    """

    def __init__(self) -> None:
        self.waiting: dict[str, tuple[float, GrpcService]] = {}
        self.look_until = 0.0
        self.has_some, self.wake = asyncio.Event(), asyncio.Event()

    def note(self, service: GrpcService) -> None:
        """Find out whether a GrpcService was deleted on purpose."""
        self.look_until = time.monotonic() + DELAY_SECONDS
        self.waiting.setdefault(service.uid, (self.look_until, service))
        self.has_some.set()
        self.wake.set()

    def find_due(self, now: float, most: int) -> list[GrpcService]:
        """Find some that are to be judged now, in turns of their namespaces: one may delete thousands at once."""
        due = (service for at, service in self.waiting.values() if at <= now)
        return choose_in_turns(due, lambda each: each.namespace, most)
