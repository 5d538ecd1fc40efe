"""Who leads a registry and what operators have recorded there: facts, read from the operator's own keys. Pure."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from grpc_etcd.inspect.cluster import ClusterFacts
from grpc_etcd.inspect.entries import LeasedRecord
from grpc_etcd.registry.own import CLUSTER_PREFIX, LEADER_PREFIX, OWNER_PREFIX, OwnerRecord


class Leader(NamedTuple):
    """The replica that leads for a cluster id; empty `namespaces` are all."""

    cluster: str
    identity: str = ""
    namespaces: tuple[str, ...] = ()
    kube_system: str = ""
    registry: str = ""  # how its settings call this etcd
    selector: str = ""  # which Pods it sees at all; empty: all

    def serves(self, namespace: str) -> bool:
        """Return whether it takes care of a namespace."""
        return not self.namespaces or namespace in self.namespaces


class Owned(NamedTuple):
    """What an operator has recorded of one Pod: which GrpcServices, and the keys of it that are there."""

    cluster: str
    uid: str
    namespace: str
    pod: str
    services: tuple[str, ...]
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class OperatorFacts:
    """All that operators have recorded in one etcd, which the caller calls `registry`."""

    leaders: tuple[Leader, ...] = ()
    owned: tuple[Owned, ...] = ()
    holders: Mapping[str, str] = field(default_factory=dict, hash=False)  # cluster id -> kube-system's UID
    registry: str = "default"

    def clusters_of(self, cluster: ClusterFacts) -> frozenset[str]:
        """Return the ids that are known to be those of a Kubernetes cluster."""
        uids = {pod.uid for pod in cluster.pods} | {service.uid for service in cluster.services}
        by_pods = {each.cluster for each in self.owned if each.uid in uids}
        if not cluster.uid:
            return frozenset(by_pods)
        by_holder = {name for name, uid in self.holders.items() if uid == cluster.uid}
        by_leader = {each.cluster for each in self.leaders if cluster.uid in {each.cluster, each.kube_system}}
        return frozenset(by_pods | by_holder | by_leader)

    def leaders_of(self, cluster: ClusterFacts) -> tuple[Leader, ...]:
        """Return who leads for a Kubernetes cluster; where its ids are not known, whoever may."""
        ours = self.clusters_of(cluster)
        if ours:
            return tuple(each for each in self.leaders if each.cluster in ours)
        return tuple(each for each in self.leaders if not (cluster.uid and each.kube_system))

    def names_of(self, cluster: ClusterFacts) -> frozenset[str]:
        """Return what GrpcServices call this etcd in `spec.registries`, as whoever leads knows it."""
        known = frozenset(each.registry for each in self.leaders_of(cluster) if each.registry)
        return known or frozenset({self.registry})


def parse_operators(records: Iterable[LeasedRecord], present: Iterable[bytes], registry: str) -> OperatorFacts:
    """Read the operators' own records; `present` are those of the keys in them that are there."""
    there, leaders, owned, holders = frozenset(present), [], [], {}
    for record in records:
        if record.key.startswith(LEADER_PREFIX) and record.lease:  # without one it was copied: nobody leads there
            leaders.append(_parse_leader(record))
        elif record.key.startswith(CLUSTER_PREFIX):
            holders[_rest(record.key, CLUSTER_PREFIX)] = str(_read(record.value).get("kubeSystem", ""))
        elif found := _parse_owned(record, there):
            owned.append(found)
    return OperatorFacts(tuple(leaders), tuple(owned), holders, registry)


def owned_keys(records: Iterable[LeasedRecord]) -> list[bytes]:
    """Return the keys that owner records of Pods name."""
    owners = (OwnerRecord.from_json(each.value) for each in records if each.key.startswith(OWNER_PREFIX))
    return [key for owner in owners if isinstance(owner, OwnerRecord) and owner.pod for key in owner.keys]


def _parse_leader(record: LeasedRecord) -> Leader:
    found = _read(record.value)
    namespaces, fingerprint = found.get("namespaces"), found.get("cluster")
    return Leader(
        _rest(record.key, LEADER_PREFIX),
        str(found.get("identity", "")),
        tuple(map(str, namespaces)) if isinstance(namespaces, list) else (),
        str(fingerprint.get("kubeSystem", "")) if isinstance(fingerprint, dict) else "",
        str(found.get("registry", "")),
        str(found.get("selector", "")),
    )


def _parse_owned(record: LeasedRecord, there: frozenset[bytes]) -> Owned | None:
    owner = OwnerRecord.from_json(record.value) if record.key.startswith(OWNER_PREFIX) else None
    if not isinstance(owner, OwnerRecord) or not owner.pod:
        return None
    cluster, _, uid = _rest(record.key, OWNER_PREFIX).rpartition("/")
    keys = tuple(key for key in owner.keys if key in there)
    return Owned(cluster, uid, owner.namespace, owner.pod, owner.grpc_services, keys)


def _rest(key: bytes, prefix: bytes) -> str:
    return key[len(prefix) :].decode(errors="backslashreplace")


def _read(value: bytes) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
