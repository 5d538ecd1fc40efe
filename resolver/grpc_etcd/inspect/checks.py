"""What is wrong with a registry, from facts. Pure: `probes` gathers the facts, the command `check` prints the findings.

What Kubernetes shows beside it is judged in `service_checks` and `registration_checks`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.entries import Entry
from grpc_etcd.inspect.findings import SHOW_OPERATORS, Finding, sort_findings
from grpc_etcd.registry.endpoint import Endpoint, split_address, unroutable
from grpc_etcd.registry.escaping import escape, escape_bytes, quote_argument
from grpc_etcd.registry.layout import Rejected


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of one registry, or of one service in it."""

    service: str | None  # None: the whole registry was asked for
    sought: tuple[str, ...]  # where it was looked for: layouts and prefixes
    entries: tuple[Entry, ...]
    elsewhere: Mapping[str, int] = field(default_factory=dict)  # options that would have found it -> records there
    similar: tuple[str, ...] = ()  # services whose name differs in case, whitespace or punctuation
    near: tuple[str, ...] = ()  # services of which the name may be a misspelling
    unreachable: Mapping[str, str] = field(default_factory=dict)  # address -> why nothing answered there
    refusing: frozenset[str] = frozenset()  # those of them whose machine answers, and nothing listens at the port
    has_owners: bool | None = False  # None: may not be read
    missing_keys: tuple[str, ...] = ()  # keys that an owner record names and that are not there
    synced: tuple[str, ...] | None = None  # clusters whose synced key is there; None: may not be read
    is_part: bool = False  # of the registry: what is not there need not be
    ready_hosts: frozenset[str] = frozenset()  # of Pods that Kubernetes calls ready
    version: str = ""
    alarms: tuple[str, ...] = ()


def find_faults(facts: Facts) -> list[Finding]:
    """Report everything that is wrong, the worst first."""
    findings = [
        *_server(facts),
        *_absence(facts),
        *_values(facts.entries),
        *_addresses(facts),
        *_leases(facts.entries),
        *_drained(facts),
        *_operator(facts),
    ]
    return sort_findings(findings)


def _server(facts: Facts) -> Iterator[Finding]:
    for alarm in facts.alarms:
        yield Finding(
            Code.ETCD_ALARM,
            "etcd",
            f"it has the active alarm {alarm.strip()}",
            FREE_SPACE if "NOSPACE" in alarm else "Replace the member whose data differ: etcdctl member list",
        )
    if facts.version and is_too_old(facts.version):
        problem = f"version {facts.version} lacks what the operator and the library depend on"
        yield Finding(Code.ETCD_TOO_OLD, "etcd", problem, UPGRADE)
    elif facts.version and is_outdated(facts.version):
        problem = f"version {facts.version} loses watch events or leases in known cases"
        yield Finding(Code.ETCD_OUTDATED, "etcd", problem, UPGRADE)


# Its history is most of what fills an etcd: `defrag` gives back only what was compacted before.
FREE_SPACE = (
    "etcdctl compact $(etcdctl endpoint status --write-out=json | grep -o '\"revision\":[0-9]*' | "
    "head -1 | cut -d: -f2); "
    "etcdctl defrag --cluster; etcdctl alarm disarm"
)
UNREADABLE_OWNERS = "this user is not allowed to read /grpc-etcd/owner/, where operators record what they have written."
GRANT_OWNERS = (
    "Grant it to users who inspect the registry: etcdctl role grant-permission ROLE --prefix=true read /grpc-etcd/"
)
EMPTY = "If Pods should be registered: kubectl get grpcservices --all-namespaces shows why none is."
UPGRADE = "Upgrade to 3.5.33, 3.6.14 or newer."
# etcd's change logs: lost events, leases renewed though revoked, permissions too wide; fixed in these.
SOUND = {(3, 5): 33, (3, 6): 14}
OLDEST = (3, 4)  # whose watches report progress when they are asked, and whose leases outlive a change of leaders


def is_outdated(version: str) -> bool:
    """Return whether a release of etcd has faults that were fixed later in its line."""
    numbers = read_version(version)
    return bool(numbers) and (numbers[:2] < min(SOUND) or numbers[2] < SOUND.get((numbers[0], numbers[1]), 0))


def is_too_old(version: str) -> bool:
    """Return whether a release of etcd lacks what is depended on."""
    numbers = read_version(version)
    return bool(numbers) and numbers[:2] < OLDEST


def read_version(version: str) -> tuple[int, ...]:
    """Return major, minor and patch; empty where it is not a version."""
    numbers = tuple(int(part) for part in version.partition("-")[0].split(".") if part.isdecimal())
    return numbers if len(numbers) >= 3 else ()  # noqa: PLR2004 - major, minor, patch


def _absence(facts: Facts) -> Iterator[Finding]:
    is_any = any(entry.provider or isinstance(entry.read, Rejected) for entry in facts.entries)
    if is_any or facts.is_part or (facts.entries and not facts.service):
        return
    what = f"service {facts.service!r}" if facts.service else "registry"
    where = ", ".join(facts.sought)
    yield from (
        Finding(
            Code.ELSEWHERE,
            what,
            f"nothing is at {where}, but {number(count, 'record')} with {options}",
            f"Use {options}.",
        )
        for options, count in facts.elsewhere.items()
    )
    yield from (
        Finding(
            Code.OTHER_SPELLING,
            what,
            f"there is no such name, but there is {name!r}",
            f"Use the name {name!r} as it is.",
        )
        for name in facts.similar
    )
    if facts.elsewhere or facts.similar:
        return
    if facts.service is None and facts.synced:
        yield Finding(Code.EMPTY_REGISTRY, what, f"there are no records at {where}", EMPTY)
    else:
        meant = f" (did you mean {' or '.join(map(repr, facts.near))}?)" if facts.near else ""
        remedy = f"Check the name{meant}, the prefix and that servers run."
        there = f"only governors or consumers are at {where}" if facts.entries else f"there are no records at {where}"
        yield Finding(Code.NO_RECORDS, what, there, remedy)


def number(count: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"there is {count} {noun}" if count == 1 else f"there are {count} {noun}s"


def _values(entries: Sequence[Entry]) -> Iterator[Finding]:
    for entry in entries:
        key = escape_bytes(entry.key)
        if isinstance(entry.read, Rejected):
            yield Finding(
                Code.BAD_RECORD,
                key,
                f"the value cannot be used: {entry.read.reason}",
                f"Correct it, or delete it if it is of no other layout, as clients may lose the service: {_show(key)}",
            )
        elif (named := key.rpartition("://"))[1] and named[2] != escape(entry.read.address):
            yield Finding(
                Code.KEY_DIFFERS,
                key,
                f"the key says {named[2]}, the value says {entry.read.address}",
                f"Make both equal, since Go clients dial the value's and delete by the key's: {_show(key)}",
            )


def _show(key: str) -> str:
    """Write the command that looks at a record: a server may be behind it, so none that deletes it is for pasting."""
    return f"etcdctl get {quote_argument(key)}"


def _delete(key: str) -> str:
    return f"etcdctl del {quote_argument(key)}"


def _addresses(facts: Facts) -> Iterator[Finding]:
    reached = {each.address for each, _ in _endpoints(facts.entries)} - facts.unreachable.keys()
    is_near = any(_host(each) in facts.ready_hosts for each in reached)
    for endpoint, entry in _endpoints(facts.entries):
        host = _host(endpoint.address)
        if kind := unroutable(host):
            yield Finding(
                Code.UNROUTABLE,
                endpoint.address,
                f"{entry.service} is registered at {kind}, which only its own machine can dial",
                "Register the Pod's IP or a routable address: set POD_IP, or listen on 0.0.0.0 and let it be chosen.",
            )
        elif not (reason := facts.unreachable.get(endpoint.address)):
            continue
        elif host in facts.ready_hosts and not (is_near and endpoint.address in facts.refusing):
            yield Finding(
                Code.NOT_FROM_HERE,
                endpoint.address,
                f"{entry.service} does not answer this machine ({reason}), although the Pod is ready in Kubernetes",
                "No action is needed if this machine is outside the cluster; else check the port and network policies.",
            )
        else:
            yield Finding(
                Code.NO_ANSWER,
                endpoint.address,
                f"{entry.service} does not answer there: {reason}",
                "Check that the server runs, that its port is right, and that network policies let this machine in.",
            )


def _host(address: str) -> str:
    return (split_address(address) or ("", 0))[0]


def _leases(entries: Sequence[Entry]) -> Iterator[Finding]:
    for entry in entries:
        if not entry.lease and isinstance(entry.read, Endpoint):
            key = escape_bytes(entry.key)
            yield Finding(
                Code.NO_LEASE,
                key,
                "the key has no lease: it stays after its server has died",
                f"Let the operator or Registry.register write it; if its server is gone: {_delete(key)}",
            )


def _drained(facts: Facts) -> Iterator[Finding]:
    services: dict[str, list[Endpoint]] = {}
    for entry in facts.entries:
        if entry.provider:
            services.setdefault(entry.service, []).append(entry.provider)
    for service, endpoints in services.items():
        if not any(each.is_callable for each in endpoints):
            yield Finding(
                Code.ALL_OUT,
                f"service {service!r}",
                f"all {len(endpoints)} endpoints are disabled, not healthy or have weight 0",
                "Enable one: spec.enable and spec.weight of the GrpcService, or the admin tool that disabled them.",
            )
        elif unhealthy := [each.address for each in endpoints if not each.healthy]:
            yield Finding(
                Code.UNHEALTHY,
                f"service {service!r}",
                f"{len(unhealthy)} of {len(endpoints)} endpoints are marked as not healthy: {', '.join(unhealthy)}",
                "They get no calls until their keys have `healthy: true` again.",
            )


def _operator(facts: Facts) -> Iterator[Finding]:
    for key in facts.missing_keys:
        yield Finding(
            Code.MISSING_KEY,
            key,
            "it is in the operator's records, but does not exist",
            "Check the operator's log and metrics.",
        )
    if facts.has_owners is None:
        yield Finding(Code.OWNERS_UNREADABLE, "owner records", f"unknown: {UNREADABLE_OWNERS}", GRANT_OWNERS)
    if facts.synced is None:
        yield Finding(
            Code.SYNCED_UNREADABLE,
            "synced key",
            "unknown: this user is not allowed to read /grpc-etcd/synced/; "
            "its clients mistake an outage for an empty service",
            "Grant it: etcdctl role grant-permission ROLE --prefix=true read /grpc-etcd/synced/",
        )
    elif facts.has_owners is None and not facts.synced:
        yield Finding(
            Code.UNKNOWN_SYNC,
            "synced key",
            "no operator has synced this registry; unknown whether one should",
            f"{GRANT_OWNERS} Then check again.",
        )
    elif facts.has_owners and not facts.synced:
        yield Finding(
            Code.NOT_SYNCED,
            "synced key",
            "there are records of an operator, but no synced key",
            f"Check that the operator runs: {SHOW_OPERATORS}, then its log and /readyz.",
        )
    elif not facts.synced:
        yield Finding(
            Code.NO_OPERATOR,
            "synced key",
            "no operator maintains this registry; clients cannot distinguish an empty service from a missing operator",
            "No operator is needed if all servers register themselves.",
        )


def _endpoints(entries: Sequence[Entry]) -> Iterator[tuple[Endpoint, Entry]]:
    return ((entry.read, entry) for entry in entries if isinstance(entry.read, Endpoint))
