"""Who a replica is, and what it is to the one that leads. Pure.

Two installations that differ in what they take care of would delete each other's keys under one cluster id, and so
would two Kubernetes clusters, to which one id was copied. So the leader's key holds, as JSON, who leads and for what;
and a key that outlives every leader holds which Kubernetes cluster the id is of, and as which registry of the settings
the etcd was led last.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import lru_cache
from typing import Any

KNOWN_VALUES = 16  # each registry has a few, which are looked at each second


@dataclass(frozen=True, slots=True)
class Scope:
    """The namespaces (empty: all) and the label selector that limit which Pods an installation sees."""

    namespaces: tuple[str, ...] = ()
    selector: str = ""

    def covers(self, namespace: str) -> bool:
        """Return whether objects of a namespace are this installation's."""
        return not self.namespaces or namespace in self.namespaces

    def is_apart_from(self, other: "Scope") -> bool:
        """Return whether no namespace is in both."""
        return bool(self.namespaces and other.namespaces) and not set(self.namespaces) & set(other.namespaces)

    def is_same(self, other: "Scope") -> bool:
        """Return whether both take care of the same, in whatever order the namespaces were given."""
        return (set(self.namespaces), self.selector) == (set(other.namespaces), other.selector)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What distinguishes Kubernetes clusters, as far as it is known: kube-system's UID, and the CA's certificates.

    A cluster cloned from a backup has the same UID; two clusters may share a company's CA. So both are compared.
    """

    kube_system: str = ""
    authorities: frozenset[str] = frozenset()

    @property
    def is_known(self) -> bool:
        """Return whether there is anything to compare."""
        return bool(self.kube_system or self.authorities)

    def is_same(self, other: "Fingerprint") -> bool:
        """Return whether nothing that both know speaks against its being the same cluster."""
        if self.kube_system and other.kube_system and self.kube_system != other.kube_system:
            return False
        return not (self.authorities and other.authorities) or bool(self.authorities & other.authorities)

    def beside(self, other: "Fingerprint") -> "Fingerprint":
        """Return this with what only another one knows, if that may be the same cluster's: it is not to be lost.

        A replica that may not read kube-system would else leave nothing but a CA, which another cluster may share.
        """
        if not self.is_same(other):
            return self
        return Fingerprint(self.kube_system or other.kube_system, self.authorities or other.authorities)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica as it stands for election. `nonce` is another in each process, `identity` may outlive one.

    `registry` is the name that its settings give to the etcd in which it stands.
    """

    identity: str
    scope: Scope = field(default_factory=Scope)
    nonce: str = ""
    installation: str = ""
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    registry: str = ""


def make_identity(given: str, host: str, process: int, nonce: str) -> str:
    """Choose an identity: what is given, else another one in each process.

    Host and process id alone do not distinguish replicas: in containers that share a node's network both are alike.
    """
    return given or f"{host}/{process}/{nonce}"


class Relation(Enum):
    """What the leader is to a replica."""

    ITSELF = auto()
    TWIN = auto()  # this very process, for another registry of its settings, which is the same etcd then
    PREDECESSOR = auto()  # an earlier process with the same identity, which has ended
    PEER = auto()
    OTHER_INSTALLATION = auto()
    OTHER_CLUSTER = auto()


@lru_cache(KNOWN_VALUES)
def write_leader(candidate: Candidate) -> bytes:
    """Write the value of a leader's key."""
    return _dump(_candidate_fields(candidate))


@lru_cache(KNOWN_VALUES)
def write_standby(candidate: Candidate, lost: frozenset[str]) -> bytes:
    """Write the value of a standby's key, with the registries of its settings that it does not reach."""
    return _dump({**_candidate_fields(candidate), "lost": sorted(lost)})


def reaches_more(standby: bytes, lost: frozenset[str]) -> bool:
    """Return whether a standby reaches more than a leader that has lost some registries, and all that this one reaches.

    So two of which each reaches what the other has lost do not hand over to each other again and again. Who does not
    say what it has lost, as older versions do not, may have lost as much.
    """
    try:
        theirs = json.loads(standby)["lost"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    return isinstance(theirs, list) and frozenset(map(str, theirs)) < lost


def _candidate_fields(candidate: Candidate) -> dict[str, object]:
    return {
        "identity": candidate.identity,
        "nonce": candidate.nonce,
        "namespaces": sorted(candidate.scope.namespaces),
        "selector": candidate.scope.selector,
        "installation": candidate.installation,
        "cluster": _fingerprint_fields(candidate.fingerprint),
        "registry": candidate.registry,
    }


def read_leader(value: bytes) -> Candidate | None:
    """Read who leads from a leader's key; None when the value is not a leader's. Older versions wrote less."""
    try:
        record = json.loads(value)
        return Candidate(
            str(record.get("identity", "")),
            Scope(tuple(sorted(map(str, record["namespaces"]))), str(record["selector"])),
            str(record.get("nonce", "")),
            str(record.get("installation", "")),
            _read_fingerprint(record.get("cluster") or {}),
            str(record.get("registry", "")),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def write_holder(fingerprint: Fingerprint, registry: str) -> bytes:
    """Write the value of a cluster's key: the cluster, and by which name of the settings this etcd was led last."""
    return _dump({**_fingerprint_fields(fingerprint), "registry": registry})


@lru_cache(KNOWN_VALUES)
def read_fingerprint(value: bytes) -> Fingerprint:
    """Read a cluster's key; what cannot be read says nothing."""
    try:
        return _read_fingerprint(json.loads(value))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return Fingerprint()


@lru_cache(KNOWN_VALUES)
def read_registry(value: bytes) -> str:
    """Read from a cluster's key by which name its etcd was led last; empty where nobody knows."""
    try:
        return str(json.loads(value).get("registry", ""))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ""


def relation(mine: Candidate, leader: bytes) -> Relation:
    """Return what the leader behind the value of a leader's key is to `mine`."""
    theirs = read_leader(leader)
    if theirs is None:
        return Relation.PEER
    if mine.nonce and (mine.identity, mine.nonce) == (theirs.identity, theirs.nonce):
        # whatever has become of the CA since that was written
        return Relation.ITSELF if mine.registry == theirs.registry else Relation.TWIN
    if not mine.fingerprint.is_same(theirs.fingerprint):
        return Relation.OTHER_CLUSTER
    if mine.identity == theirs.identity and mine.identity:
        return Relation.PREDECESSOR
    if mine.installation and mine.installation == theirs.installation:
        return Relation.PEER  # an upgrade may be changing its scope
    return Relation.PEER if mine.scope.is_same(theirs.scope) else Relation.OTHER_INSTALLATION


def _fingerprint_fields(fingerprint: Fingerprint) -> dict[str, object]:
    return {"kubeSystem": fingerprint.kube_system, "ca": sorted(fingerprint.authorities)}


def _read_fingerprint(fields: Mapping[str, Any]) -> Fingerprint:
    return Fingerprint(str(fields.get("kubeSystem", "")), frozenset(map(str, fields.get("ca") or ())))


def _dump(record: Mapping[str, object]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


def write_refusal(cluster_key: str, *, is_foreign: bool, twin: str) -> str:
    """Return why a replica does not lead beside whoever does: `twin` names another registry of the same etcd."""
    if is_foreign:
        return (
            "this cluster id belongs to another Kubernetes cluster, whose keys this replica would delete, so it does "
            "not become leader: give one of the two another --cluster-id, or, if this cluster's CA was replaced or "
            f"the other cluster is gone for good: etcdctl del {cluster_key}"
        )
    if twin:
        return (
            f"this etcd is also that of the registry {twin}, under other endpoints, so this registry has no leader of "
            "its own; remove one of the two registries from the settings, or give both a common endpoint"
        )
    return (
        "another installation is leader under this cluster id, with other namespaces or another selector; this one "
        "does not write: give one of them another --cluster-id"
    )
