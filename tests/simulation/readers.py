"""Readers: the client's own following of services, on the models, and what no reader may ever do.

Nothing is replaced but the hub's threads: the hub is the one for asyncio, which has the same core. What a reader shows
is looked at after each change, beside what etcd has held.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from grpc_etcd.discovery.registry_watch import RegistryWatch
from grpc_etcd.discovery.state import Reader as Law
from grpc_etcd.discovery.state import Source
from grpc_etcd.discovery.subscription import ServiceSubscription
from grpc_etcd.etcd import Deleted, Event
from grpc_etcd.etcd.aio import Etcd, WatchHub
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.xds.localities import is_callable
from testbed.models.etcd_channel import open_etcd
from testbed.models.etcd_server import EtcdModel
from testbed.models.wires import Wire
from tests.simulation.timeline import Timeline
from tests.simulation.virtual_time import OWNER, tasks_of

SYNCED = b"/grpc-etcd/synced/simulated"
SYNCED_SECONDS = 10.0  # within which a synced key of a backup has run out
OPERATOR = "operator"
READER = "reader"
RIGHTS = (b"/jupiter/", b"/grpc-etcd/")  # the prefixes that a client must be allowed to read
STRANGER = b"{}"  # the value of what no client takes for an endpoint
NEVER = -1e9
# So long after something was in etcd a reader may still go by it: news are late by 20 s at most while a connection is
# well, and one that is silent is given up within 15 s.
LATE_SECONDS = 45.0
# For so long a reader that reaches etcd may show what etcd does not hold, though the registry is vouched for.
SHOWN_SECONDS = 60.0
END_SECONDS = 30.0


class LoopHub:
    """The hub for asyncio, as the following of services asks for one: one thread calls all consumers, the loop's."""

    def __init__(self, hub: WatchHub) -> None:
        self._hub, self._loop = hub, asyncio.get_running_loop()
        self.follow, self.follow_key = hub.follow, hub.follow_key

    def ask_keys(self, prefix: bytes, limit: int, on_keys: Callable[[Sequence[bytes]], None]) -> None:
        """Read the first keys of a prefix once."""
        self._hub.note(lambda core, _: core.ask_keys(prefix, limit, on_keys))

    def run(self, work: Callable[[], object]) -> None:
        """Do something soon."""
        self._loop.call_soon(work)


class ClientEtcd:
    """An etcd client, as the following of services asks for one."""

    def __init__(self, etcd: Etcd) -> None:
        self.hub = etcd.watch_hub()

    def watch_hub(self) -> LoopHub:
        """Return the hub."""
        return LoopHub(self.hub)


class History:
    """What etcd has held of services, as far as readers may go by it."""

    def __init__(self, etcd: EtcdModel) -> None:
        self._etcd = etcd
        self.gone_at: dict[bytes, float] = {}
        self.vouched_empty_at: dict[str, float] = {}
        self.lost_at = NEVER  # when etcd was wiped or restored
        self._vouched_at = NEVER
        self._present: set[bytes] = set()

    def addresses(self, service: str) -> set[str]:
        """Give the addresses that are in etcd."""
        prefix = _prefix(service)
        records = self._etcd.space.range(prefix, prefix[:-1] + b"0").records
        return {each.key.removeprefix(prefix).decode() for each in records if each.value != STRANGER}

    def take(self, events: Sequence[Event]) -> None:
        """Take what has happened in etcd."""
        for event in events:
            if isinstance(event, Deleted):
                self._present.discard(event.key)
                self.gone_at[event.key] = self._etcd.now()
            else:
                self._present.add(event.key)
                self.gone_at.pop(event.key, None)
                if event.key == SYNCED:
                    self._vouched_at = self._etcd.now()

    def begin_anew(self) -> None:
        """Take it that etcd has lost its data."""
        now, self.lost_at = self._etcd.now(), self._etcd.now()
        self.gone_at |= dict.fromkeys(self._present, now)
        self._present = {each.key for each in self._etcd.space.range(b"\0", b"\0").records}
        if SYNCED in self._present:  # of the backup, and until its lease has run out
            self._vouched_at = now + SYNCED_SECONDS

    def look(self, services: Sequence[str]) -> None:
        """Note which services are empty with somebody's word for it."""
        if self.is_vouched_for():
            for service in services:
                if not self.addresses(service):
                    self.vouched_empty_at[service] = self._etcd.now()

    def is_vouched_for(self) -> bool:
        """Say whether the synced key is there."""
        return self._etcd.space.get(SYNCED) is not None

    @property
    def has_been_confirmed(self) -> bool:
        """Say whether the synced key has been put since etcd lost its data."""
        return self._vouched_at > self.lost_at

    def was_there(self, service: str, address: str) -> bool:
        """Say whether an address is in etcd, or was until a moment ago."""
        gone_at = self.gone_at.get(_prefix(service) + address.encode(), NEVER)
        return address in self.addresses(service) or self._etcd.now() - gone_at < LATE_SECONDS


class ServiceReader:
    """One process that follows some services."""

    def __init__(  # noqa: PLR0917  what it reads, and who is told
        self,
        name: str,
        etcd: EtcdModel,
        services: Sequence[str],
        history: History,
        timeline: Timeline,
        on_fault: Callable[[str], None],
        user: str = "",
    ) -> None:
        self.name, self._etcd, self._services, self._user = name, etcd, services, user
        self._history, self._timeline, self._on_fault = history, timeline, on_fault
        self.wire = Wire(etcd.wire, name=name)
        self._shown: dict[str, set[str]] = {}
        self._dropped_at: dict[str, dict[str, float]] = {}  # when an address was shown last, of each service
        self._arrived_at: dict[str, float] = {}  # when an address came that etcd held, of each service
        self._vouched_since: float | None = None
        self._knew_at = NEVER  # when it knew for sure that etcd was vouched for
        self._wrong_since: dict[str, float] = {}
        self._feeds: dict[str, ServiceSubscription] = {}
        self._laws: dict[str, Law] = {}
        self._stop = asyncio.Event()

    def start(self) -> None:
        """Begin to follow."""
        self._stop = asyncio.Event()
        reset = OWNER.set(self.name)
        self._task = asyncio.get_running_loop().create_task(self._run(self._stop), name=self.name)
        OWNER.reset(reset)

    async def _run(self, stop: asyncio.Event) -> None:
        client = open_etcd(self._etcd, self.wire, user=self._user, password=self._user)
        reader = ClientEtcd(client)
        watch = RegistryWatch(reader, "simulation")
        for service in self._services:
            law = Law(service, (make_layout("jupiter", None),), "jupiter")
            self._laws[service], self._shown[service], self._dropped_at[service] = law, set(), {}
            self._feeds[service] = ServiceSubscription(service, law, watch, partial(self._judge, service))
            self._feeds[service].start()
        try:
            await stop.wait()
        finally:
            await reader.hub.close()
            await client.close()

    async def end(self) -> None:
        """End it; nothing may be left of it."""
        self._stop.set()
        loop = asyncio.get_running_loop()
        end = loop.time() + END_SECONDS
        while left := tasks_of(self.name):
            await asyncio.wait(left, timeout=1.0)
            if loop.time() > end:
                raise AssertionError(f"{self.name} has ended, and its tasks have not: {left}")
        self._wrong_since.clear()

    def look(self) -> None:
        """Look whether it shows what is there; to be called every few seconds."""
        now = self._etcd.now()
        is_well = self.wire.is_well and self._etcd.wire.is_well and self._etcd.has_quorum and self._may_read
        is_sure = is_well and self._history.is_vouched_for()
        self._look_whether_it_knows(is_sure=is_sure)
        for service, feed in self._feeds.items():
            feed.look_after()
            if not is_sure or self.shown(service) == self._held(service):
                self._wrong_since.pop(service, None)
            elif now - self._wrong_since.setdefault(service, now) > SHOWN_SECONDS:
                different = sorted(self.shown(service) ^ self._held(service))
                self._on_fault(f"{self.name} has shown for {SHOWN_SECONDS:g} s what etcd does not hold: {different}")

    @property
    def _may_read(self) -> bool:
        user = self._etcd.users.get(self._user)
        return user is None or len(user.readable) == len(RIGHTS)

    def _look_whether_it_knows(self, *, is_sure: bool) -> None:
        """Note since when etcd is vouched for, and that it has had the time to hear of that."""
        now = self._etcd.now()
        if not is_sure:
            self._vouched_since = None
        elif self._vouched_since is None:
            self._vouched_since = now
        elif now - self._vouched_since > LATE_SECONDS:
            self._knew_at = now

    def unsettled(self) -> dict[str, Any]:
        """Say of which services it does not show what is there."""
        wrong = {each: sorted(self.shown(each) ^ self._held(each)) for each in self._feeds}
        return {f"{self.name} shows {each}": different for each, different in wrong.items() if different}

    def shown(self, service: str) -> set[str]:
        """Give the addresses that it would call."""
        snapshot = self._feeds[service].view.snapshot
        return {each.address for each in snapshot.endpoints if is_callable(each)} if snapshot else set()

    def _held(self, service: str) -> set[str]:
        return self._history.addresses(service)

    def _judge(self, service: str) -> None:
        before, after = self._shown[service], self.shown(service)
        self._shown[service] = after
        source = self._feeds[service].view.source
        if before != after:
            self._timeline.note(self.name, f"shows of {service} ({source}): {sorted(after)}")
        has_seen_operator = bool(self._laws[service]._marks_seen)
        for fault in self._faults(service, before, after, is_kept=source is Source.STALE) if has_seen_operator else ():
            self._on_fault(f"{self.name}: {fault}")
        self._dropped_at[service] |= dict.fromkeys(before - after, self._etcd.now())
        if after - before and source is Source.REGISTRY:
            self._arrived_at[service] = self._etcd.now()

    def _faults(self, service: str, before: set[str], after: set[str], *, is_kept: bool) -> Sequence[str]:
        """Say what must never be about a change of what is shown."""
        history, now, found = self._history, self._etcd.now(), []
        history.look(self._services)
        if before and not after and now - history.vouched_empty_at.get(service, NEVER) > LATE_SECONDS:
            found.append(f"{service} is shown empty, and nobody vouches for that")
        risen = sorted(each for each in after - before if not history.was_there(service, each))
        if is_kept:
            risen = [each for each in risen if not self._may_be_kept(service, each)]
        if risen and (before or is_kept):
            found.append(f"of {service} are shown again, which are long gone: {risen}")
        if not history.has_been_confirmed:
            lost = sorted(each for each in before - after if not self._came_again(service, each))
            if lost:
                found.append(
                    f"of {service} are dropped, and nobody has vouched for that since etcd lost its data: {lost}"
                )
        return found

    def _may_be_kept(self, service: str, address: str) -> bool:
        """Say whether an address that was dropped may be shown again, as one of the last good set.

        While nobody vouches for what goes, the set that there was before is good, until an address comes: then it is
        what etcd holds.
        """
        latest = max(self._knew_at, self._arrived_at.get(service, NEVER))
        return self._dropped_at[service].get(address, NEVER) > latest

    def _came_again(self, service: str, address: str) -> bool:
        """Say whether an address has been in etcd since that lost its data: it is etcd's from then on."""
        key = _prefix(service) + address.encode()
        return address in self._held(service) or self._history.gone_at.get(key, NEVER) > self._history.lost_at


def _prefix(service: str) -> bytes:
    return f"/jupiter/{service}/providers/grpc://".encode()
