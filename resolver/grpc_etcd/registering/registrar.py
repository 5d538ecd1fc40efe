"""Register this process's own endpoints: what `Registry.register` and its kin hand over to.

Registering returns at once. Only what can never be registered is an exception (ValueError); everything else, etcd
away, a lease lost, a key deleted or taken by somebody, is seen to by the driver for as long as it takes, and told by
`Registration.status`.
"""

import asyncio
import atexit
import enum
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypedDict

from grpc_etcd.etcd import EtcdError
from grpc_etcd.registering.address import advertised_address, probe_machine
from grpc_etcd.registering.claims import Claim, make_claim, make_metric_claim
from grpc_etcd.registering.driver import Driver, WritableEtcd
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import Layout, Rejected
from grpc_etcd.settings import host_name

# How long a crashed process stays registered: short for callers that retry, long enough for a restart of etcd.
LEASE_TTL_SECONDS = 30
CLOSE_SECONDS = 5.0
WRITER = "self-registered"


class State(enum.Enum):
    """Where a registration stands."""

    PENDING = "pending"
    REGISTERED = "registered"
    TAKEN = "taken"  # another process has put the key under a lease of its own; ours is put again when that goes
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Status:
    """Where a registration stands; `fault` is what etcd answered last, None while nothing is wrong."""

    state: State
    fault: EtcdError | None = None


class RegisterOptions(TypedDict, total=False):
    """What a registration can be told besides its endpoint."""

    layouts: Sequence[Layout] | None  # default: the registry's
    metrics_address: str  # becomes a Prometheus target of the service, as Jupiter's registerMetric makes it
    allow_unroutable: bool  # register 127.0.0.1 and the like, for tests and single machines


class Registration:
    """One endpoint that this process keeps registered, until `unregister` or until its registry is closed."""

    def __init__(self, driver: Driver, endpoint: Endpoint, keys: Iterable[bytes]) -> None:
        self._driver = driver
        self.endpoint = endpoint
        self.keys = tuple(keys)

    def __repr__(self) -> str:
        return f"<Registration {self.endpoint.name} {self.endpoint.address} {self.status.state.value}>"

    @property
    def status(self) -> Status:
        """Say where the registration stands now."""
        return Status(self._state(), self._driver.fault)

    def _state(self) -> State:
        ask = self._driver.ask
        if ask(lambda keeper: all(keeper.is_gone(key) for key in self.keys)):
            return State.WITHDRAWN
        if ask(lambda keeper: any(keeper.is_taken(key) for key in self.keys)):
            return State.TAKEN
        registered = ask(lambda keeper: all(keeper.is_registered(key) for key in self.keys))
        return State.REGISTERED if registered else State.PENDING

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until every key is in etcd; False when the time is up first."""
        return self._driver.wait_until(
            lambda keeper: all(keeper.is_registered(key) for key in self.keys), timeout_seconds
        )

    async def wait_async(self, timeout_seconds: float | None = None) -> bool:
        """Wait as `wait` does, without blocking the event loop."""
        return await asyncio.to_thread(self.wait, timeout_seconds)

    def release(self) -> None:
        """Begin to delete the keys; returns at once."""
        self._driver.release(self.keys)

    def unregister(self, timeout_seconds: float = CLOSE_SECONDS) -> bool:
        """Delete the keys; False when etcd did not confirm it in time (it is still done once etcd answers)."""
        self.release()
        return self._driver.wait_until(lambda keeper: all(keeper.is_gone(key) for key in self.keys), timeout_seconds)

    async def unregister_async(self, timeout_seconds: float = CLOSE_SECONDS) -> bool:
        """Unregister as `unregister` does, without blocking the event loop."""
        return await asyncio.to_thread(self.unregister, timeout_seconds)


class Registrar:
    """Keeps endpoints registered in one etcd. Starts nothing before the first one. Thread-safe."""

    def __init__(
        self,
        etcd: WritableEtcd,
        layouts: Sequence[Layout],
        *,
        pod_ip: str = "",
        lease_ttl_seconds: int = LEASE_TTL_SECONDS,
    ) -> None:
        self._driver = Driver(etcd, lease_ttl_seconds)
        self._layouts = tuple(layouts)
        self._pod_ip = pod_ip
        self._registrations: list[Registration] = []

    def register(
        self,
        endpoint: Endpoint,
        *,
        layouts: Sequence[Layout] | None = None,
        metrics_address: str = "",
        allow_unroutable: bool = False,
    ) -> Registration:
        """Keep an endpoint registered in each layout from now on; an earlier one at its address is replaced.

        A wildcard host (0.0.0.0, [::]) becomes POD_IP or this machine's routable address. A host that others cannot
        dial is a ValueError unless `allow_unroutable`. `metrics_address` is made a Prometheus target of the service.
        """
        endpoint = replace(endpoint, address=self._advertise(endpoint.address, allow_unroutable=allow_unroutable))
        claims = [_accepted(make_claim(layout, endpoint, WRITER)) for layout in layouts or self._layouts]
        if metrics_address:
            address = self._advertise(metrics_address, allow_unroutable=allow_unroutable)
            claims.append(make_metric_claim(endpoint.name, host_name(), address))
        registration = Registration(self._driver, endpoint, (claim.key for claim in claims))
        if not self._registrations:
            atexit.register(self.close)
        self._registrations = [each for each in self._registrations if each.keys != registration.keys]
        self._registrations.append(registration)
        self._driver.claim(claims)
        return registration

    def unregister(self, which: Registration | Endpoint, timeout_seconds: float = CLOSE_SECONDS) -> bool:
        """Withdraw an endpoint; False when etcd did not confirm it in time. What is not registered is a KeyError."""
        found = [each for each in self._registrations if which in (each, each.endpoint)]
        if not found:
            raise KeyError(f"this process has not registered {which!r}")
        self._registrations = [each for each in self._registrations if each not in found]
        return all(withdraw_all(found, timeout_seconds))

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """All that this process keeps registered."""
        return tuple(self._registrations)

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> bool:
        """Withdraw everything and give the lease back; False when etcd did not confirm it in time."""
        atexit.unregister(self.close)
        self._registrations = []
        return self._driver.stop(timeout_seconds)

    def _advertise(self, address: str, *, allow_unroutable: bool) -> str:
        chosen = advertised_address(address, probe_machine(self._pod_ip), allow_unroutable=allow_unroutable)
        if isinstance(chosen, Rejected):
            raise ValueError(chosen.reason)  # noqa: TRY004 - the text is at fault, not its type
        return chosen


def withdraw_all(registrations: Sequence[Registration], timeout_seconds: float) -> tuple[bool, ...]:
    """Withdraw several at once, within one time; says of each whether etcd confirmed it."""
    deadline = time.monotonic() + timeout_seconds
    for each in registrations:
        each.release()
    return tuple(each.unregister(max(0.0, deadline - time.monotonic())) for each in registrations)


@contextmanager
def withdrawing(registration: Registration) -> Iterator[Registration]:
    """Withdraw a registration when the block ends."""
    try:
        yield registration
    finally:
        registration.unregister()


def _accepted(claim: Claim | Rejected) -> Claim:
    if isinstance(claim, Rejected):
        raise ValueError(claim.reason)  # noqa: TRY004 - the endpoint is at fault, not its type
    return claim
