"""Every code that `grpc-etcd check` gives a finding, with its severity; docs/checks.md has a section for each.

The first two digits are the room: 01 Pods and their selection, 02 ports, 03 claims and names, 04 etcd, 05 the operator,
06 readiness gates, 07 records that clients read, 08 specs and manifests, 09 what could not be looked at. A code never
gets another meaning: scripts may depend on it. Pure.
"""

import enum
from enum import StrEnum
from typing import Self

PAGE = "docs/checks.md"


class Severity(enum.Enum):
    """How bad a finding is."""

    ERROR = "error"  # callers fail, or will; rollouts do not go on
    WARNING = "warning"  # something to look into
    NOTE = "note"


ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


class Code(StrEnum):
    """A code; `summary` says what was found."""

    severity: Severity
    summary: str

    def __new__(cls, value: str, severity: Severity, summary: str) -> Self:
        """Make one: a string that equals its value."""
        made = str.__new__(cls, value)
        made._value_, made.severity, made.summary = value, severity, summary
        return made

    @property
    def page(self) -> str:
        """Return the section of the documentation that explains it."""
        return f"{PAGE}#{self.value.lower()}"

    NO_PODS = "GE0101", ERROR, "The selector matches no Pod"
    NO_READY_PODS = "GE0102", WARNING, "No selected Pod is ready"
    NOT_REGISTERED = "GE0103", ERROR, "A ready Pod is not registered"
    REGISTERED_UNREADY = "GE0104", ERROR, "A Pod that is not ready is registered"
    REGISTERED_GONE = "GE0105", ERROR, "A Pod that is gone is registered"
    BAD_WEIGHT = "GE0106", WARNING, "A Pod's weight annotation is not usable"
    DISABLED = "GE0107", NOTE, "The GrpcService is disabled"
    SERVICE_NOT_FOUND = "GE0108", ERROR, "The Service does not exist"
    SERVICE_UNUSABLE = "GE0109", ERROR, "The Service cannot be used"
    SHORT_GRACE = "GE0110", WARNING, "The preStop pause takes all of the grace period"
    NO_PORT = "GE0201", ERROR, "No selected Pod has the port"
    SOME_WITHOUT_PORT = "GE0202", WARNING, "Some selected Pods lack the port"
    UNDECLARED_PORT = "GE0203", NOTE, "The port number is declared by no container"
    NOTHING_LISTENS = "GE0204", ERROR, "Nothing listens at the port number"
    SERVICE_PORT = "GE0205", WARNING, "The port is the Service's, not the container's"
    NAME_TAKEN = "GE0301", ERROR, "The name belongs to another namespace"
    PREFIX_NOT_ALLOWED = "GE0302", ERROR, "The prefix is not allowed"
    NAME_RESERVED = "GE0303", ERROR, "The name is reserved"
    UNKNOWN_REGISTRY = "GE0304", ERROR, "The registry is not in the operator's settings"
    KEY_TAKEN = "GE0305", ERROR, "Another writer has the key"
    KEY_SHARED = "GE0306", WARNING, "Two GrpcServices write the same key"
    UNWRITABLE = "GE0307", ERROR, "A value cannot be written"
    NAME_IN_USE = "GE0308", WARNING, "Another namespace uses the name of the manifest"
    ETCD_UNREACHABLE = "GE0401", ERROR, "etcd cannot be read"
    ETCD_TLS = "GE0402", ERROR, "TLS to etcd fails"
    ETCD_LOGIN = "GE0403", ERROR, "etcd refuses the user"
    ETCD_DENIED = "GE0404", ERROR, "The user of this command is not allowed to read the registry"
    OPERATOR_DENIED = "GE0405", ERROR, "The operator's etcd user lacks a permission"
    ETCD_ALARM = "GE0406", ERROR, "etcd has an active alarm"
    ETCD_OUTDATED = "GE0407", WARNING, "This version of etcd has known defects"
    ETCD_TOO_OLD = "GE0408", ERROR, "This version of etcd is too old"
    OWNERS_UNREADABLE = "GE0409", NOTE, "No permission to read the operator's records"
    SYNCED_UNREADABLE = "GE0410", WARNING, "No permission to read the synced key"
    NO_LEADER = "GE0501", ERROR, "The registry has no leader"
    OPERATOR_DOWN = "GE0502", ERROR, "The operator's Deployment has no ready replica"
    FOREIGN_LEADER = "GE0503", ERROR, "Another installation is leader with this cluster id"
    NOT_SYNCED = "GE0504", ERROR, "The registry is not synced"
    NO_OPERATOR = "GE0505", NOTE, "No operator maintains this registry"
    NOT_SEEN = "GE0506", ERROR, "The operator has not seen the GrpcService"
    REGISTRY_UNAVAILABLE = "GE0507", ERROR, "The operator cannot use etcd"
    PODS_UNREADABLE = "GE0508", ERROR, "The operator is not allowed to read Pods"
    INTERNAL_ERROR = "GE0509", ERROR, "The operator has an unexpected error"
    OTHER_REASON = "GE0510", ERROR, "The GrpcService is not ready"
    NOT_SERVED = "GE0511", ERROR, "No operator serves the namespace"
    CLOCK_SKEW = "GE0512", WARNING, "Clocks differ"
    NO_CRD = "GE0513", WARNING, "The CRD is not installed"
    UNKNOWN_SYNC = "GE0514", WARNING, "It is unknown whether the registry should be synced"
    LEFT_BEHIND = "GE0515", WARNING, "Keys of another cluster id, which has no leader"
    RATE_LIMITED = "GE0516", ERROR, "The namespace writes too much to etcd"
    SERVICES_UNREADABLE = "GE0517", ERROR, "The operator is not allowed to read Services"
    GATE_WITHOUT_OPERATOR = "GE0601", ERROR, "Pods wait at the readiness gate, and there is no leader"
    GATE_WAITING = "GE0602", ERROR, "Pods wait at the readiness gate"
    WRONG_GATE = "GE0603", ERROR, "The readiness gate is misspelled"
    NO_RECORDS = "GE0701", ERROR, "There are no records"
    ELSEWHERE = "GE0702", ERROR, "Records are under another prefix or layout"
    OTHER_SPELLING = "GE0703", ERROR, "The name is spelled differently"
    BAD_RECORD = "GE0704", ERROR, "A record cannot be decoded"
    KEY_DIFFERS = "GE0705", ERROR, "Key and value name different addresses"
    UNROUTABLE = "GE0706", ERROR, "The address cannot be dialed from other machines"
    NO_ANSWER = "GE0707", ERROR, "Nothing responds at a registered address"
    NO_LEASE = "GE0708", ERROR, "A key has no lease"
    ALL_OUT = "GE0709", ERROR, "No endpoint accepts calls"
    UNHEALTHY = "GE0710", WARNING, "Some endpoints are not healthy"
    MISSING_KEY = "GE0711", WARNING, "A key that the operator wrote is missing"
    EMPTY_REGISTRY = "GE0712", NOTE, "The registry is empty"
    NOT_FROM_HERE = "GE0713", WARNING, "A ready Pod does not answer this machine"
    BAD_FIELD = "GE0801", ERROR, "A field of the manifest is not valid"
    UNKNOWN_FIELD = "GE0802", ERROR, "A field of the manifest does not exist"
    BAD_FILE = "GE0803", ERROR, "The file cannot be read as YAML"
    INVALID_SPEC = "GE0804", ERROR, "The spec is not valid"
    KUBERNETES_UNREACHABLE = "GE0901", WARNING, "Kubernetes cannot be read"
    KUBERNETES_FAILED = "GE0902", ERROR, "Kubernetes was requested but cannot be read"
    MAY_NOT_READ = "GE0903", WARNING, "The caller is not allowed to read objects"
    OPERATOR_UNSEEN = "GE0904", NOTE, "The operator's Deployment is not visible"
    NO_SUCH_GRPCSERVICE = "GE0905", NOTE, "No GrpcService has this name here"
    ONLY_KUBERNETES = "GE0906", NOTE, "etcd was not checked"
    ONLY_ETCD = "GE0907", NOTE, "Kubernetes was not checked"
    NO_NAMESPACE = "GE0908", ERROR, "The namespace does not exist"
    NOT_REACHED = "GE0909", WARNING, "etcd is not reached through kubectl"
    SERVICE_UNSEEN = "GE0910", NOTE, "The Service is in none of the files"
