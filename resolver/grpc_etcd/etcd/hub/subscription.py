"""What a consumer holds of a range that it follows."""

from collections.abc import Callable
from typing import Protocol

from grpc_etcd.etcd.hub.core import Core
from grpc_etcd.etcd.hub.watch import Watch
from grpc_etcd.etcd.model import State


class SubscriptionDriver(Protocol):
    """A driver, as the subscriptions that it gives see it."""

    def note(self, note: Callable[[Core, float], None]) -> None:
        """Let the core note something soon."""


class Subscription:
    """What a consumer holds of a range that it follows. All of it may be used from any thread of the driver's world."""

    def __init__(self, watch: Watch, driver: SubscriptionDriver) -> None:
        self._watch, self._driver = watch, driver

    def __repr__(self) -> str:
        return f"<Subscription {self._watch.key!r} {self._watch.stage.name}>"

    @property
    def state(self) -> State:
        """How fresh the news are."""
        return self._watch.state

    def close(self) -> None:
        """Follow the range no longer, at etcd too; no news begins after this. May be called from within a callback."""
        self._watch.is_closed = True
        self._driver.note(lambda core, _: core.close(self._watch))

    def await_revision(self, revision: int) -> None:
        """Have Progress told as soon as the range is known up to that revision, which etcd has reached already."""
        self._driver.note(lambda core, now: core.await_revision(self._watch, revision, now))

    def list_again(self) -> None:
        """Take it that the consumer has failed at news: the range is listed again, after a pause."""
        self._driver.note(lambda core, now: core.fault(self._watch, now))
