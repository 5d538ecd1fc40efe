"""The feeds of one service in several registries, seen as one.

A registry that is down never holds up another: what the others know is used, and what it said last is kept. Where two
name the same address, the registry given first is believed; its policy goes before the others' field by field too.
"""

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from grpc_etcd.client.base import Following
from grpc_etcd.discovery.state import ResolverState, Source
from grpc_etcd.discovery.subscription import StateSource
from grpc_etcd.discovery.waiting import OVER
from grpc_etcd.registry.policy import Policy
from grpc_etcd.registry.snapshot import Snapshot

if TYPE_CHECKING:
    from grpc_etcd.discovery.publisher import FollowedService


class UnionSubscription(StateSource):
    """The feeds of one service in all parts, seen as one."""

    def __init__(self, service: str, parts: Sequence[Following], on_change: Callable[[], None]) -> None:
        super().__init__()
        self._service = service
        self._parts = parts
        self._on_change = on_change
        self._followed: tuple[FollowedService, ...] = ()
        self._pins = ExitStack()
        self._merging = threading.Lock()
        self.whereabouts = f"{len(parts)} registries"
        self._is_waiting = True

    def __repr__(self) -> str:
        return f"<UnionSubscription {self._service!r} of {len(self._parts)}>"

    @property
    def waits_until(self) -> float:
        """Whether to wait: the parts say when that changes."""
        return math.inf if self._is_waiting else OVER

    def start(self) -> None:
        """Begin to follow the service in every part."""
        self._followed = tuple(self._pins.enter_context(part.pinned(self._service)) for part in self._parts)
        self.whereabouts = ", and under ".join(followed.feed.whereabouts for followed in self._followed)
        for followed in self._followed:
            self._pins.enter_context(followed.feed.notifying(self._merge))
        self._merge()

    def close(self) -> None:
        """Stop following."""
        self._pins.close()
        super().close()

    def _merge(self) -> None:
        """Join what the parts know; many threads call, and one at a time reads and reports."""
        with self._merging:
            feeds = [followed.feed for followed in self._followed]
            self.freshness = min((feed.freshness for feed in feeds), key=lambda fresh: (fresh.connected, fresh.since))
            self.last_seen_at = min(feed.last_seen_at for feed in feeds)
            self.fault = "; ".join(feed.fault for feed in feeds if feed.fault)
            self.advice = next((feed.advice for feed in feeds if feed.advice), "") if len(feeds) == 1 else ""
            self.names = tuple(dict.fromkeys(name for feed in feeds for name in feed.names))
            waiting = [feed.is_waiting for feed in feeds]  # before the views: whoever answers meanwhile calls again
            views = [feed.view for feed in feeds]
            self._is_waiting = is_waiting(views, waiting)
            self.is_more_awaited = any(waiting)
            self._announce(merge_views(self._service, views, [not each for each in waiting]))
        self._on_change()


def is_waiting(views: Sequence[ResolverState], waiting: Sequence[bool]) -> bool:
    """Return whether a part may yet say whom to call, and none that waits no longer knows anybody."""
    known = any(view.callables for view, waits in zip(views, waiting, strict=True) if not waits)
    return any(waiting) and not known


def merge_views(service: str, views: Sequence[ResolverState], failed: Sequence[bool] = ()) -> ResolverState:
    """Join what several registries say of one service.

    Unknown while all of them are; also while those that have answered know no endpoint that may be called, and another
    one has neither answered nor failed.
    """
    known = [(view, view.snapshot) for view in views if view.snapshot is not None]
    refused = tuple(each for view in views for each in view.refused)
    has_failed = [*failed, *[False] * (len(views) - len(failed))]
    is_open = any(view.snapshot is None and not gone for view, gone in zip(views, has_failed, strict=True))
    if not known or (is_open and not any(view.callables for view, _ in known)):
        return ResolverState(refused=refused, is_denied=not is_open and any(view.is_denied for view in views))
    endpoints = {each.address: each for _, snapshot in reversed(known) for each in snapshot.endpoints}
    snapshot = Snapshot(
        service,
        max(snapshot.revision for _, snapshot in known),
        tuple(endpoints[address] for address in sorted(endpoints)),
        {key: reason for _, snapshot in reversed(known) for key, reason in snapshot.rejected.items()},
    )
    policy = Policy()
    for view, _ in known:
        policy = policy.over(view.policy)
    return ResolverState(
        source=next((view.source for view, _ in known if view.source is not Source.REGISTRY), Source.REGISTRY),
        snapshot=snapshot,
        policy=policy,
        policy_faults=tuple(fault for view, _ in known for fault in view.policy_faults),
        routes=next((view.routes for view, _ in known if view.routes), ()),
        reason="; ".join(view.reason for view, _ in known if view.reason),
        refused=refused,
        is_partial=any(view.snapshot is None and not view.is_denied for view in views),
    )
