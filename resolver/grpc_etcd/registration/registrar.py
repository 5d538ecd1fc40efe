"""Register this process's own endpoints: what `Registry.register` and its kin hand over to.

Registering returns at once. Only what can never be registered is an exception (ValueError, TypeError); everything else,
etcd away, a lease lost, a key deleted or taken by somebody, is seen to by the worker for as long as it takes, and
reported by `Registration.status` and in the log.
"""

import asyncio
import atexit
import enum
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from grpc_etcd.etcd import EtcdError
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registration.address import advertised_address, probe_machine
from grpc_etcd.registration.offloop import in_own_thread
from grpc_etcd.registration.reconciler import RegistrationReconciler
from grpc_etcd.registration.records import Claim, make_claim, make_metric_claim
from grpc_etcd.registration.worker import OF_THE_PARENT, Worker, WritableEtcd
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import Layout, Rejected
from grpc_etcd.settings import host_name

# How long a crashed process stays registered: short for callers that retry, long enough for a restart of etcd.
LEASE_TTL_SECONDS = 30
LONGEST_LEASE_TTL_SECONDS = 9_000_000_000  # etcd grants no longer one (lease.MaxLeaseTTL)
STOP_SECONDS = 5.0  # arbitrary: well within the 10 s of `docker stop` and the 30 s of Kubernetes
WRITER = "self-registered"
IDENTITY = ("name", "address", "scheme", "instance")  # what makes a key; another one of these is another registration


class State(enum.Enum):
    """The state of a registration."""

    PENDING = "pending"
    REGISTERED = "registered"  # by this process, or by another one that serves the same address
    TAKEN = "taken"  # another process has written the key under its own lease; written again once that is gone
    DEREGISTERED = "deregistered"


@dataclass(frozen=True, slots=True)
class Status:
    """The status of a registration; `fault` is etcd's last error that concerns it, None if there is none."""

    state: State
    fault: EtcdError | None = None


class RegisterOptions(TypedDict, total=False):
    """The options of `register` and `bind`."""

    layouts: Sequence[str | Layout] | None  # names or layouts; default: the registry's
    metrics_address: str  # a Prometheus target of the service, as Jupiter's registerMetric writes it
    allow_unroutable: bool  # allow addresses such as 127.0.0.1, for tests and single machines


class NotRegisteredError(KeyError):
    """What was to be deregistered is not registered by this process."""

    def __str__(self) -> str:
        """Return the sentence; a KeyError would quote it."""
        return str(self.args[0])


class Registration:
    """One endpoint that this process keeps registered, until `unregister` or until its registry is closed."""

    def __init__(
        self,
        registrar: "Registrar",
        asked: Endpoint,
        endpoint: Endpoint,
        claims: Sequence[Claim],
        layouts: Sequence[Layout],
    ) -> None:
        self._registrar = registrar
        self._worker = registrar.worker
        self._layouts = layouts
        self.asked = asked
        self.endpoint = endpoint
        self.keys = tuple(claim.key for claim in claims)
        # A bound server, which lives as long as it is registered: gRPC ends one that nobody refers to any more.
        self.served_by: object = None

    def __repr__(self) -> str:
        return f"<Registration {self.endpoint.name} {self.endpoint.address} {self.status.state.value}>"

    @property
    def status(self) -> Status:
        """Return the current status.

        Without an answer from etcd for as long as the lease lives, nobody knows of a key that it is still there.
        """
        state = self._worker.ask(self._state)
        if state is State.REGISTERED and self._worker.may_have_expired:
            state = State.PENDING
        return Status(state, self._worker.fault_of(self.keys))

    def _state(self, reconciler: RegistrationReconciler) -> State:
        if self._is_gone(reconciler):
            return State.DEREGISTERED
        if any(reconciler.is_taken(key) for key in self.keys):
            return State.TAKEN
        return State.REGISTERED if self._is_registered(reconciler) else State.PENDING

    def _is_registered(self, reconciler: RegistrationReconciler) -> bool:
        return self._registrar.keeps(self) and all(reconciler.is_registered(key) for key in self.keys)

    def _is_over(self) -> bool:
        return not self._registrar.keeps(self)

    def _is_gone(self, reconciler: RegistrationReconciler) -> bool:
        return all(reconciler.is_gone(key) for key in self._owned())

    def _owned(self) -> tuple[bytes, ...]:
        """Return the keys that no later registration has taken over."""
        return self._registrar.keys_of(self)

    @property
    def stop_seconds(self) -> float:
        """The time limit for deregistering, from the registry."""
        return self._registrar.stop_seconds

    def is_of(self, endpoint: Endpoint) -> bool:
        """Return whether this is the registration of an endpoint, as it was given or as it was published."""
        return _identity(endpoint) in (_identity(self.asked), _identity(self.endpoint))

    def update(self, **changes: Any) -> None:
        """Change the registered endpoint: `update(weight=10)`, `update(enable=False)`, `update(metadata={...})`.

        Accepts all fields of Endpoint except those in its key (name, address, scheme, instance). Returns at once;
        values that an admin has edited in etcd are replaced. Raises ValueError if a layout cannot store the change
        (nothing is changed then), or if the registration has been deregistered, and TypeError for an unknown field.
        """
        self.prepare(changes)()

    def prepare(self, changes: Mapping[str, Any]) -> Callable[[], None]:
        """Check changes and return a function that applies them."""
        check_changes(changes)
        if self._worker.is_inherited:
            raise ValueError(OF_THE_PARENT)
        endpoint = replace(self.endpoint, **changes)
        claims = [_accepted(make_claim(layout, endpoint, WRITER)) for layout in self._layouts]
        if not {claim.key for claim in claims} <= set(self.keys):
            raise ValueError(f"{sorted(changes)} would change the key: unregister it and register again")
        if not self._registrar.keeps(self):
            raise ValueError(f"{self!r} cannot be changed: it has been deregistered or replaced; register it again")

        def change() -> None:
            self.endpoint = endpoint
            self.asked = replace(self.asked, **changes)
            self._worker.claim(claims)

        return change

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until every key is in etcd; returns False after the timeout, or if it has been deregistered."""
        return self._worker.wait_until(self._is_registered, timeout_seconds, self._is_over)

    async def wait_async(self, timeout_seconds: float | None = None) -> bool:
        """As `wait`, without blocking the event loop."""
        return await self._ask_in_thread(self._is_registered, timeout_seconds, self._is_over, daemon=True)

    def release(self) -> None:
        """Begin to delete the keys; returns at once."""
        self._registrar.release(self)

    def unregister(self, timeout_seconds: float | None = None) -> bool:
        """Delete the keys; returns False if etcd did not confirm it in time (it is still done once etcd responds).

        Without `timeout_seconds`, the registry's `stop_seconds` applies.
        """
        owned = self._release_owned()
        return self._worker.wait_until(
            lambda reconciler: all(map(reconciler.is_gone, owned)), self._seconds(timeout_seconds)
        )

    async def unregister_async(self, timeout_seconds: float | None = None) -> bool:
        """As `unregister`, without blocking the event loop; takes effect even if the task is cancelled."""
        owned = self._release_owned()
        return await self._ask_in_thread(
            lambda reconciler: all(map(reconciler.is_gone, owned)), self._seconds(timeout_seconds), lambda: False
        )

    def _release_owned(self) -> tuple[bytes, ...]:
        owned = self._owned()
        self.release()
        return owned

    def _seconds(self, timeout_seconds: float | None) -> float:
        return self.stop_seconds if timeout_seconds is None else timeout_seconds

    async def _ask_in_thread(
        self,
        question: Callable[[RegistrationReconciler], bool],
        timeout_seconds: float | None,
        is_over: Callable[[], bool],
        *,
        daemon: bool = False,
    ) -> bool:
        """Wait in a thread, which ends with the task that waits for it: else the program could not end."""
        given_up = False

        def ask() -> bool:
            return self._worker.wait_until(question, timeout_seconds, lambda: given_up or is_over())

        try:
            return await in_own_thread(ask, daemon=daemon)
        finally:
            given_up = True
            self._worker.wake()


class Registrar:
    """Keeps endpoints registered in one etcd. Starts nothing before the first one. Thread-safe.

    `lease_ttl_seconds` is for how long a killed process stays registered. `stop_seconds` is what deregistering may take
    in all, at the end of a program too, when etcd does not answer. `prefix` is that of layouts which are given by name.
    """

    def __init__(  # noqa: PLR0913 - what a registry was reported
        self,
        etcd: WritableEtcd,
        layouts: Sequence[Layout],
        *,
        pod_ip: str = "",
        lease_ttl_seconds: int = LEASE_TTL_SECONDS,
        stop_seconds: float = STOP_SECONDS,
        prefix: str | None = None,
    ) -> None:
        check_times(lease_ttl_seconds, stop_seconds)
        self.worker = Worker(etcd, lease_ttl_seconds)
        self.stop_seconds = stop_seconds
        self._layouts = tuple(layouts)
        self._pod_ip = pod_ip
        self._prefix = prefix
        self._lock = threading.RLock()
        self._registrations: list[Registration] = []
        self._owners: dict[bytes, Registration] = {}

    def register(self, endpoint: Endpoint, **options: Any) -> Registration:
        """Keep an endpoint registered in each layout from now on; an earlier one at its address is replaced.

        Takes the options of `RegisterOptions`. A wildcard host (0.0.0.0, [::]) becomes POD_IP or this machine's
        routable address. A host that others cannot dial is a ValueError unless `allow_unroutable`. `metrics_address` is
        made a Prometheus target of the service.
        """
        return self.prepare(endpoint, **options)()

    def prepare(
        self,
        endpoint: Endpoint,
        *,
        layouts: Sequence[str | Layout] | str | None = None,
        metrics_address: str = "",
        allow_unroutable: bool = False,
    ) -> Callable[[], Registration]:
        """Check what is to be registered; what is returned registers it."""
        check_endpoint(endpoint)
        chosen = self._choose(layouts)
        address = self._advertise(endpoint.address, allow_unroutable=allow_unroutable)
        published = replace(endpoint, address=address)
        claims = [_accepted(make_claim(layout, published, WRITER)) for layout in chosen]
        if metrics_address:
            address = self._advertise(metrics_address, allow_unroutable=allow_unroutable)
            claims.append(make_metric_claim(endpoint.name, host_name(), address))
        return lambda: self._keep(Registration(self, endpoint, published, claims, chosen), claims)

    def _keep(self, registration: Registration, claims: Sequence[Claim]) -> Registration:
        with self._lock:
            self.worker.claim(claims)
            self._forget_past()
            if not _OPEN:
                atexit.register(_close_all)
            _OPEN[id(self)] = self
            self._owners |= dict.fromkeys(registration.keys, registration)
            self._registrations = [each for each in self._registrations if self.keys_of(each)]
            self._registrations.append(registration)
        return registration

    def _forget_past(self) -> None:
        """Forget whose those keys were that are known to be gone."""
        kept = set(map(id, self._registrations))
        left = [key for key, owner in self._owners.items() if id(owner) not in kept]
        for key in self.worker.ask(lambda reconciler: [each for each in left if reconciler.is_gone(each)]):
            del self._owners[key]

    def keeps(self, registration: Registration) -> bool:
        """Return whether a registration is neither deregistered nor replaced."""
        is_known = any(each is registration for each in self._registrations)
        return is_known and self.keys_of(registration) == registration.keys

    def keys_of(self, registration: Registration) -> tuple[bytes, ...]:
        """Return the keys of a registration that no later one has taken over."""
        return tuple(key for key in registration.keys if self._owners.get(key) is registration)

    def release(self, registration: Registration) -> None:
        """Begin to deregister a registration, but what a later one has taken over; returns at once.

        A forked child deregisters nothing of what its parent registers.
        """
        if self.worker.is_inherited:
            return
        with self._lock:
            self._registrations = [each for each in self._registrations if each is not registration]
            self.worker.release(self.keys_of(registration), self.stop_seconds)

    def unregister(self, which: Registration | Endpoint, timeout_seconds: float | None = None) -> bool:
        """Deregister an endpoint; False when etcd did not confirm it in time. What is not registered is a KeyError."""
        return all(deregister_all(self.find(which), timeout_seconds))

    def find(self, which: Registration | Endpoint) -> tuple[Registration, ...]:
        """Return the registrations of an endpoint; KeyError when there is none."""
        if not isinstance(which, Registration | Endpoint):
            raise TypeError(
                f"unregister takes what register() returned, or the Endpoint that was registered, not {which!r}"
            )
        found = [each for each in self._registrations if each is which]
        if isinstance(which, Endpoint):
            found = [each for each in self._registrations if each.is_of(which)]
        if not found:
            raise NotRegisteredError(self._say_unknown(which))
        return tuple(found)

    def _say_unknown(self, which: Registration | Endpoint) -> str:
        if isinstance(which, Registration):
            return f"{which!r} is not registered here: it has been deregistered or replaced, or is another registry's"
        known = ", ".join(f"{each.endpoint.name} at {each.endpoint.address}" for each in self._registrations)
        return f"this process does not register {which.name} at {which.address}; it registers {known or 'nothing'}"

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """All that this process keeps registered."""
        return tuple(self._registrations)

    def close(self, timeout_seconds: float | None = None) -> bool:
        """Deregister everything and give the lease back; False when etcd did not confirm it in time."""
        if self.worker.is_inherited:
            return True  # a forked child has registered nothing by it
        with self._lock:
            _OPEN.pop(id(self), None)
            self._registrations = []
        if not _OPEN:
            atexit.unregister(_close_all)
        return self.worker.stop(self.stop_seconds if timeout_seconds is None else timeout_seconds)

    def _choose(self, layouts: Sequence[str | Layout] | str | None) -> tuple[Layout, ...]:
        """Return layouts; a name is the registry's own layout of that name, if it has one."""
        if layouts is None:
            return self._layouts
        own = {layout.name: layout for layout in self._layouts}
        names = (layouts,) if isinstance(layouts, str) else layouts
        chosen = tuple(
            (own.get(each) or make_layout(each, self._prefix)) if isinstance(each, str) else each for each in names
        )
        if not chosen:
            raise ValueError("layouts is empty: give the names of one or more layouts, or None for the registry's own")
        return chosen

    def _advertise(self, address: str, *, allow_unroutable: bool) -> str:
        chosen = advertised_address(address, probe_machine(self._pod_ip), allow_unroutable=allow_unroutable)
        if isinstance(chosen, Rejected):
            raise ValueError(chosen.reason)  # noqa: TRY004 - the text is at fault, not its type
        return chosen


_OPEN: dict[int, Registrar] = {}  # all that has to be deregistered when the process ends


def _close_all() -> None:
    """Deregister all that is registered when the process ends, in all registries within one time."""
    registrars = list(_OPEN.values())
    deadline = time.monotonic() + max((each.stop_seconds for each in registrars), default=0.0)
    for registrar in registrars:
        for registration in registrar.registrations:
            registration.release()
    for registrar in registrars:
        registrar.close(max(0.0, min(registrar.stop_seconds, deadline - time.monotonic())))


def register_all(prepared: Iterable[Callable[[], Registration]]) -> tuple[Registration, ...]:
    """Register in several registries what was prepared, or in none: where one cannot, the others deregister it."""
    made: list[Registration] = []
    try:
        for register in prepared:
            made.append(register())  # noqa: PERF401 - what has been made must be known when the next one fails
    except BaseException:
        for each in made:
            each.release()
        raise
    return tuple(made)


def deregister_all(registrations: Sequence[Registration], timeout_seconds: float | None = None) -> tuple[bool, ...]:
    """Deregister several at once, within one time; says of each whether etcd confirmed it."""
    if timeout_seconds is None:
        timeout_seconds = max((each.stop_seconds for each in registrations), default=0.0)
    deadline = time.monotonic() + timeout_seconds
    for each in registrations:
        each.release()
    return tuple(each.unregister(max(0.0, deadline - time.monotonic())) for each in registrations)


async def deregister_all_async(
    registrations: Sequence[Registration], timeout_seconds: float | None = None
) -> tuple[bool, ...]:
    """Deregister as `deregister_all` does, without blocking the event loop; all is begun before anything is awaited."""
    for each in registrations:
        each.release()
    return tuple(await asyncio.gather(*(each.unregister_async(timeout_seconds) for each in registrations)))


def check_endpoint(endpoint: object) -> None:
    """Refuse what is not an endpoint, with a word on what is."""
    if not isinstance(endpoint, Endpoint):
        name = endpoint if isinstance(endpoint, str) else "greeter"
        raise TypeError(
            f"register takes an Endpoint, such as Endpoint(name={name!r}, address='0.0.0.0:50051'), not {endpoint!r}; "
            "bind(server, name) takes a name"
        )


def check_changes(changes: Mapping[str, Any]) -> None:
    """Refuse changes of what is not a field, or of what makes the key."""
    allowed = [each.name for each in fields(Endpoint) if each.name not in IDENTITY]
    if fixed := [name for name in changes if name in IDENTITY]:
        raise TypeError(f"update cannot change {fixed[0]}: unregister it and register another endpoint")
    if unknown := [name for name in changes if name not in allowed]:
        raise TypeError(f"update has no option {unknown[0]!r}; an endpoint has {', '.join(allowed)}")


def check_times(lease_ttl_seconds: float, stop_seconds: float) -> None:
    """Refuse times that etcd or a stop cannot keep to."""
    is_whole = isinstance(lease_ttl_seconds, int) and not isinstance(lease_ttl_seconds, bool)
    if not is_whole or not 1 <= lease_ttl_seconds <= LONGEST_LEASE_TTL_SECONDS:
        raise ValueError(
            f"lease_ttl_seconds is {lease_ttl_seconds!r}: give whole seconds of at least 1 (30 by default),"
            f" at most {LONGEST_LEASE_TTL_SECONDS}, which is etcd's limit"
        )
    if (
        isinstance(stop_seconds, bool)
        or not isinstance(stop_seconds, int | float)
        or not 0 <= stop_seconds < float("inf")
    ):
        raise ValueError(f"stop_seconds is {stop_seconds!r}: give seconds of at least 0 (5 by default)")


def _identity(endpoint: Endpoint) -> tuple[str, ...]:
    return tuple(getattr(endpoint, name) for name in IDENTITY)


def _accepted(claim: Claim | Rejected) -> Claim:
    if isinstance(claim, Rejected):
        raise ValueError(claim.reason)  # noqa: TRY004 - the endpoint is at fault, not its type
    return claim
