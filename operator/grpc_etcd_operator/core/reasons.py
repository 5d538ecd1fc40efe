"""Every reason that a condition, an Event or a readiness gate gives: what it means, and what to do about it."""

from enum import StrEnum
from typing import Self

OF_ACCEPTED, OF_PROGRAMMED, OF_BOTH = "Accepted", "Programmed", "Accepted, Programmed"
OF_AN_EVENT, OF_A_GATE = "Event", "readiness gate"
NOTHING = "Nothing."


class Reason(StrEnum):
    """A reason as Kubernetes shows it; `place` says of what it is one, `remedy` what its reader can do about it."""

    place: str
    meaning: str
    remedy: str

    def __new__(cls, value: str, place: str, meaning: str, remedy: str = NOTHING) -> Self:
        """Make one: a string that equals its value."""
        made = str.__new__(cls, value)
        made._value_, made.place, made.meaning, made.remedy = value, place, meaning, remedy
        return made

    ACCEPTED = "Accepted", OF_ACCEPTED, "The spec is valid and its claims are granted."
    PENDING = (
        "Pending",
        OF_BOTH,
        "The claims are being written to the status, or the Pods' keys to etcd, or Services are being listed.",
        "Nothing; if it lasts, see the message, the operator's log and `/readyz`.",
    )
    INVALID_SPEC = "InvalidSpec", OF_ACCEPTED, "The spec is invalid.", "Correct the fields in the message."
    PREFIX_NOT_ALLOWED = (
        "PrefixNotAllowed",
        OF_ACCEPTED,
        "The operator does not allow this `spec.prefix`.",
        "Choose another prefix, or ask the operator's admin to add it to `allowedPrefixes`.",
    )
    NAME_RESERVED = (
        "NameReserved",
        OF_ACCEPTED,
        "The keys of this name would contain, or lie below, keys that do not belong to a service.",
        "Choose another `spec.name`.",
    )
    NAME_TAKEN = (
        "NameTaken",
        OF_ACCEPTED,
        "A GrpcService of another namespace has claimed this name, or a prefix that contains or lies within its own.",
        "Choose another `spec.name`, or delete the other GrpcService.",
    )
    SERVICE_NOT_FOUND = (
        "ServiceNotFound",
        OF_ACCEPTED,
        "The Service of `spec.serviceRef` does not exist; existing keys stay.",
        "Create the Service, or give `spec.selector` instead.",
    )
    SERVICE_UNUSABLE = (
        "ServiceUnusable",
        OF_ACCEPTED,
        "The Service of `spec.serviceRef` has no selector, or leads out of the cluster; existing keys stay.",
        "Name another Service, or give `spec.selector` instead.",
    )
    SERVICES_UNREADABLE = (  # this and PodsUnreadable: a condition is neither true nor false
        "ServicesUnreadable",
        OF_ACCEPTED,
        "The operator may not read the Services of the namespace, or was never answered; what it last knew applies.",
        "Restore the operator's Role and RoleBinding there, or the API server's answers; the message has which.",
    )
    UNKNOWN_REGISTRY = (
        "UnknownRegistry",
        OF_ACCEPTED,
        "`spec.registries` lists a registry that is not in the operator's settings; existing keys there stay.",
        "Correct the name, or add the registry to the settings.",
    )
    PORT_NOT_FOUND = (
        "PortNotFound",
        OF_BOTH,
        "Pods do not have the port; `Accepted` is false only if no ready Pod has it. Existing keys of these Pods stay.",
        "Correct `spec.port`, or give the container port that name.",
    )
    PROGRAMMED = "Programmed", OF_PROGRAMMED, "Every ready Pod is in the registry."
    NOT_ACCEPTED = "NotAccepted", OF_PROGRAMMED, "The spec is not accepted.", "See the reason of `Accepted`."
    DISABLED = "Disabled", OF_PROGRAMMED, "`spec.enable` is false, so there are no endpoints."
    NO_PODS = (
        "NoPods",
        OF_PROGRAMMED,
        "The selector matches no Pod of the namespace.",
        "Compare `spec.selector` with the Pods' labels.",
    )
    NO_READY_PODS = (
        "NoReadyPods",
        OF_PROGRAMMED,
        "The selector matches Pods, but none of them is ready.",
        "Find out why: `kubectl describe pod`.",
    )
    PODS_UNREADABLE = (
        "PodsUnreadable",
        OF_PROGRAMMED,
        "The operator is not allowed to read the Pods of the namespace; their keys stay.",
        "Restore the operator's Role and RoleBinding there.",
    )
    REGISTRY_UNAVAILABLE = (
        "RegistryUnavailable",
        "Programmed, readiness gate",
        "etcd cannot be reached, or the operator is not allowed to write its own records there.",
        "See the message, and the runbook in docs/operations.md.",
    )
    NO_LEADER = (
        "NoLeader",
        OF_PROGRAMMED,
        "No replica is leader of the registry.",
        "Check `/readyz` of the replicas.",
    )
    FOREIGN_LEADER = (
        "ForeignLeader",
        OF_PROGRAMMED,
        "Another installation, or another Kubernetes cluster, is leader with this cluster id.",
        "Give one of the two another `clusterId`.",
    )
    UNWRITABLE = (
        "Unwritable",
        OF_PROGRAMMED,
        "A layout cannot store an endpoint, a route or a value, or it is too large for etcd.",
        "Change the value in the message.",
    )
    BAD_WEIGHT = (
        "BadWeight",
        OF_PROGRAMMED,
        "The weight annotation of a Pod is not an allowed number; the weight of the GrpcService is used.",
        "Correct the annotation.",
    )
    KEY_TAKEN = (
        "KeyTaken",
        OF_PROGRAMMED,
        "The key belongs to a server that registers itself, another writer, or a Pod or GrpcService with precedence.",
        "Stop the other writer, or delete its key.",
    )
    KEY_SHARED = (
        "KeyShared",
        OF_PROGRAMMED,
        "An older GrpcService of the namespace, or another of its layouts, writes the key; clients find the Pod there.",
        "Delete one of the two GrpcServices, or remove one of the two layouts.",
    )
    PERMISSION_DENIED = (
        "PermissionDenied",
        OF_PROGRAMMED,
        "The operator's etcd user is not allowed to read or write the keys.",
        "Run the command in the message.",
    )
    RATE_LIMITED = (
        "RateLimited",
        OF_PROGRAMMED,
        "The namespace has written too many bytes to etcd; keys are still deleted at once, the rest is written later.",
        "Find out what changes all the time, such as an annotation or the readiness of Pods.",
    )
    INTERNAL_ERROR = (
        "InternalError",
        "Programmed, Event",
        "An unexpected error occurred in the operator for this object; the operator retries.",
        "Report it, with the operator's log.",
    )
    MASS_DELETION = (
        "MassDeletion",
        OF_AN_EVENT,
        "Most Pods were missing from a complete list, or a changed `podSelector` excludes them.",
        "See the alert `GrpcEtcdMassDeletion` in docs/operations.md.",
    )
    REGISTERED = (
        "Registered",
        "readiness gate, Event",
        "The Pod's keys are in etcd, or it needs none; for a GrpcService: its first Pods are registered.",
    )
    DEREGISTERED = (
        "Deregistered",
        OF_AN_EVENT,
        "No Pod of the GrpcService is registered any more; the message has the reason.",
        "If that is unexpected, find out why: `grpc-etcd check NAME`, `kubectl describe pod`.",
    )
    REGISTERING = (
        "Registering",
        OF_A_GATE,
        "The Pod's keys are not in etcd yet.",
        "Nothing; if it lasts, see the message and the conditions of the GrpcService in it.",
    )


OBEYED = (Reason.ACCEPTED, Reason.UNKNOWN_REGISTRY)  # with which a spec is in force, at least in part
KEEPING = (Reason.PORT_NOT_FOUND, Reason.UNWRITABLE)  # faults of a Pod for which nothing is deleted
HARMLESS = (Reason.BAD_WEIGHT,)  # faults with which the keys are written all the same
DENIED = (Reason.PERMISSION_DENIED, Reason.UNWRITABLE)  # faults that etcd's answer to a write has
# With which the registries were not asked, and those with which one of them cannot be written.
UNASKED = (Reason.NOT_ACCEPTED, Reason.PENDING, Reason.PODS_UNREADABLE)
OUT_OF_REACH = (Reason.REGISTRY_UNAVAILABLE, Reason.NO_LEADER, Reason.FOREIGN_LEADER)
UNREADABLE = (Reason.PODS_UNREADABLE, Reason.SERVICES_UNREADABLE)
# With which something else than the GrpcService, its Pods' specs or permissions is to be waited for: it is not stalled.
PASSING = (
    Reason.PENDING,
    Reason.SERVICE_NOT_FOUND,
    Reason.SERVICES_UNREADABLE,
    Reason.PODS_UNREADABLE,
    Reason.REGISTRY_UNAVAILABLE,
    Reason.NO_LEADER,
    Reason.KEY_TAKEN,
    Reason.RATE_LIMITED,
    Reason.INTERNAL_ERROR,
)
# A condition turns to these without an Event: another condition has one, it passes, or it has an Event of its own.
WITHOUT_EVENT = (Reason.NOT_ACCEPTED, Reason.PENDING, Reason.NO_PODS)


def reference() -> str:
    """Write the table of all reasons as Markdown."""
    head = "| reason | used in | meaning | what to do |\n| --- | --- | --- | --- |\n"
    return head + "".join(f"| `{each}` | {each.place} | {each.meaning} | {each.remedy} |\n" for each in Reason)
