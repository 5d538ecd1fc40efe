"""Keeps a cache synced: watches of the owner records and of the prefixes that our services write under.

Prefixes come and go with GrpcServices. All share one stream; what etcd refuses about one of them is reported of that
one and tried again, while all others go on.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from grpc_etcd.etcd import Subscription, errors
from grpc_etcd.etcd.aio import Etcd, WatchHub
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.etcd.hub.core import OTHER_HISTORY, SHARED
from grpc_etcd.etcd.model import Disconnected, WatchSnapshot, WatchUpdate

# What etcd says of one prefix, and an admin has to fix.
REFUSALS = (errors.PermissionDenied, errors.InvalidRequest)


class PrefixWatch:
    """Follows prefixes of one registry and hands on all news with the prefix that they are of.

    A loss of the connection is handed on once, with the prefix that noticed it first; `trouble` says how long it lasts.
    A prefix that is refused is handed on as Disconnected with the refusal as its error, and any other news of it say
    that it can be read again. `on_error` is called with each exception that `on_update` raises; that prefix is then
    listed again.
    """

    def __init__(
        self,
        etcd: Etcd,
        on_update: Callable[[tuple[bytes, ...], WatchUpdate], None],
        on_error: Callable[[bytes, Exception], None] | None = None,
    ) -> None:
        self._etcd, self._on_update, self._on_error = etcd, on_update, on_error
        self._hub: WatchHub | None = None
        self._wanted: dict[bytes, Subscription | None] = {}
        self._listed: set[bytes] = set()
        self._refused: dict[bytes, EtcdError] = {}
        self._reported: EtcdError | None = None

    def follow(self, prefixes: Iterable[bytes]) -> None:
        """Follow these prefixes too, from now on until unfollow()."""
        for prefix in prefixes:
            if prefix not in self._wanted:
                self._wanted[prefix] = None
                self._subscribe(prefix)

    def unfollow(self, prefixes: Iterable[bytes]) -> None:
        """Follow these prefixes no longer, and forget that they were listed."""
        for prefix in prefixes:
            subscription = self._wanted.pop(prefix, None)
            if subscription:
                subscription.close()
            self._listed.discard(prefix)
            self._refused.pop(prefix, None)

    def has(self, prefixes: Iterable[bytes]) -> bool:
        """Return whether all these prefixes have been listed, in the history that etcd holds, and may still be read."""
        return self._listed.issuperset(prefixes)

    def is_followed(self, prefix: bytes) -> bool:
        """Return whether a prefix is or will be followed."""
        return prefix in self._wanted

    @property
    def trouble(self) -> Disconnected | None:
        """Return the loss of connection that still lasts."""
        state = self._hub.state if self._hub else None
        if state is None or state.error is None or state.stale_since is None:
            return None
        return Disconnected(state.error, state.stale_since)

    @property
    def refused(self) -> Mapping[bytes, EtcdError]:
        """Return the prefixes that etcd refuses now, and how."""
        return MappingProxyType(self._refused)

    async def run(self) -> None:
        """Follow all prefixes as they come, until cancelled."""
        self._hub = self._etcd.watch_hub(on_error=self._on_error)
        try:
            for prefix in tuple(self._wanted):
                self._subscribe(prefix)
            await asyncio.Event().wait()
        finally:
            ending, self._hub = self._hub, None
            self._wanted = dict.fromkeys(self._wanted)
            self._listed.clear()
            self._refused.clear()
            await ending.close()

    def _subscribe(self, prefix: bytes) -> None:
        if self._hub:
            self._wanted[prefix] = self._hub.follow(prefix, lambda news: self._take(prefix, news))

    def _take(self, prefix: bytes, news: WatchUpdate) -> None:
        match news:
            case Disconnected(error=error) if isinstance(error, REFUSALS):
                self._listed.discard(prefix)
                self._refused[prefix] = error
            case Disconnected(error=error):
                if isinstance(error, OTHER_HISTORY):
                    self._listed.discard(prefix)
                if self._is_reported(error):
                    return
            case _:
                self._note_well(prefix, news)
        self._on_update((prefix,), news)

    def _note_well(self, prefix: bytes, news: WatchUpdate) -> None:
        if isinstance(news, WatchSnapshot):
            self._listed.add(prefix)
        if self._refused:
            self._refused.pop(prefix, None)
        if self._reported and not self.trouble:
            self._reported = None

    def _is_reported(self, error: EtcdError) -> bool:
        """Return whether this concerns all prefixes and was handed on already for another one."""
        if not isinstance(error, SHARED + OTHER_HISTORY):
            return False
        reported, self._reported = self._reported, error
        return type(reported) is type(error)
