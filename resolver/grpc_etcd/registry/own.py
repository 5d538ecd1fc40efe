"""The operator's own keys: who leads, whether the registry is complete, who stands behind a provider key.

They live under `/grpc-etcd/`, outside every layout's prefixes. Both sides need them: the operator writes them, clients
watch the synced key and the policy, and the command line names the Pod behind a key.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.escaping import quote_argument
from grpc_etcd.registry.layout import Rejected

ROOT = b"/grpc-etcd/"
LEADER_PREFIX = ROOT + b"leader/"
SYNCED_PREFIX = ROOT + b"synced/"
OWNER_PREFIX = ROOT + b"owner/"
POLICY_PREFIX = ROOT + b"policy/"
CLUSTER_PREFIX = ROOT + b"cluster/"
STANDBY_PREFIX = ROOT + b"standby/"
CLOCK_PREFIX = ROOT + b"clock/"

_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def leader_key(cluster: str) -> bytes:
    """Return the key whose creator may write for `cluster`."""
    return LEADER_PREFIX + cluster.encode()


def synced_key(cluster: str) -> bytes:
    """Return the key that exists only while the operator of `cluster` is synced."""
    return SYNCED_PREFIX + cluster.encode()


def cluster_key(cluster: str) -> bytes:
    """Return the key that says which Kubernetes cluster `cluster` is the id of; it has no lease."""
    return CLUSTER_PREFIX + cluster.encode()


def clock_key(cluster: str) -> bytes:
    """Return the key in which the operator of `cluster` records when revisions were committed; it has no lease."""
    return CLOCK_PREFIX + cluster.encode()


def standby_prefix(cluster: str) -> bytes:
    """Return the prefix of the keys of those replicas of `cluster` that could lead at once."""
    return STANDBY_PREFIX + cluster.encode() + b"/"


def owner_prefix(cluster: str) -> bytes:
    """Return the prefix of all that the operator of `cluster` owns."""
    return OWNER_PREFIX + cluster.encode() + b"/"


def owner_key(cluster: str, uid: str) -> bytes:
    """Return the key of the owner record of the Pod (or GrpcService) with this UID."""
    return owner_prefix(cluster) + uid.encode()


def policy_key(prefix: str, service: str) -> bytes:
    """Return the key of a service's client policy; `prefix` is the one that its layout writes under."""
    return POLICY_PREFIX + f"{prefix.strip('/')}/{service}".encode()


def format_time(seconds: float) -> str:
    """Write a time (Unix seconds) as RFC 3339, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class ClockReading(NamedTuple):
    """At this time (Unix seconds) a revision was there already; those after it came later, as far as is known."""

    revision: int
    time: float

    def to_json(self) -> bytes:
        """Write the reading."""
        return _ENCODE({"revision": self.revision, "time": format_time(self.time)}).encode()

    @classmethod
    def from_json(cls, value: bytes) -> "ClockReading | Rejected":
        """Read a reading; fields that a later version may add are skipped."""
        try:
            parsed: Any = json.loads(value)
            time = datetime.fromisoformat(_text(parsed["time"])).timestamp()
            format_time(time)  # raises where no calendar year has it
            return cls(int(parsed["revision"]), time)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            return Rejected(f"the value is not a clock reading: {type(error).__name__}: {error}")


class Adjustment(NamedTuple):
    """What an admin tool set on one key, and what the operator's value said then: it holds until that changes."""

    enable: bool
    weight: float
    was_enable: bool
    was_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerRecord:
    """Which Pod and which GrpcServices (`namespace/name`) stand behind which keys, and what admin tools adjusted.

    `sources` says which keys are of which GrpcService, where there is more than one.
    """

    namespace: str
    pod: str = ""
    node: str = ""
    grpc_services: tuple[str, ...] = ()
    keys: tuple[bytes, ...] = ()
    adjustments: Mapping[bytes, Adjustment] = field(default_factory=dict, hash=False)
    sources: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict, hash=False)

    def behind(self, key: bytes) -> tuple[str, ...]:
        """Name the GrpcServices that a key may be of: all of them, where that is not recorded."""
        found = tuple(reference for reference, keys in self.sources.items() if key in keys)
        return found or self.grpc_services

    def to_json(self) -> bytes:
        """Write the record; equal records give equal bytes."""
        record: dict[str, object] = {
            "namespace": self.namespace,
            "pod": self.pod,
            "node": self.node,
            "grpcServices": sorted(self.grpc_services),
            "keys": list(map(_write_key, sorted(self.keys))),
        }
        if self.adjustments:
            record["adjustments"] = {_write_key(key): list(made) for key, made in sorted(self.adjustments.items())}
        if self.sources:
            record["sources"] = {of: list(map(_write_key, sorted(keys))) for of, keys in sorted(self.sources.items())}
        return _ENCODE(record).encode(errors="backslashreplace")  # JSON's escape of a lone surrogate

    @classmethod
    def from_json(cls, value: bytes) -> "OwnerRecord | Rejected":
        """Read a record; fields that a later version may add are skipped."""
        try:
            parsed: Any = json.loads(value)
            return cls(
                namespace=_text(parsed["namespace"]),
                pod=_text(parsed.get("pod", "")),
                node=_text(parsed.get("node", "")),
                grpc_services=tuple(_text(name) for name in parsed.get("grpcServices", ())),
                keys=tuple(map(_read_key, parsed.get("keys", ()))),
                adjustments={
                    _read_key(of): _read_adjustment(made) for of, made in parsed.get("adjustments", {}).items()
                },
                sources={_text(of): tuple(map(_read_key, keys)) for of, keys in parsed.get("sources", {}).items()},
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            return Rejected(f"the value is not an owner record: {type(error).__name__}: {error}")


def _write_key(key: bytes) -> str:
    """Write a key; somebody else may have put one under a lease of ours that is not UTF-8."""
    return key.decode(errors="surrogateescape")


def _read_key(item: object) -> bytes:
    return _text(item).encode(errors="surrogateescape")


def _read_adjustment(made: object) -> Adjustment:
    if not isinstance(made, list):
        raise TypeError(f"{made!r} is not a list")
    found = Adjustment(*made)
    for enable, weight in ((found.enable, found.weight), (found.was_enable, found.was_weight)):
        Endpoint(name="any", address="", enable=enable, weight=weight)  # raises where these can be no endpoint's
        float(weight)
    return found


def _text(item: object) -> str:
    if not isinstance(item, str):
        raise TypeError(f"{item!r} is not a string")
    return item


def describe_grant(access: str, *prefixes: bytes) -> str:
    """Return what an admin of etcd does to let a user `read`, or `readwrite`, the keys with these prefixes."""
    shown = (quote_argument(prefix.decode(errors="replace")) for prefix in prefixes)
    grants = "; ".join(f"etcdctl role grant-permission ROLE --prefix=true {access} {each}" for each in shown)
    return f"Grant a role of this user (etcdctl user get USER lists them) access to the range: {grants}"
