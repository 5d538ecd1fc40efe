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
        """Make one: a text that equals its value."""
        made = str.__new__(cls, value)
        made._value_, made.place, made.meaning, made.remedy = value, place, meaning, remedy
        return made

    ACCEPTED = "Accepted", OF_ACCEPTED, "The spec is valid and its claims are granted."
    PENDING = (
        "Pending",
        OF_BOTH,
        "The claim on the name is being written to the status, or the Pods' keys to etcd.",
        "Nothing; if it lasts, look at the operator's log and at `/readyz`.",
    )
    INVALID_SPEC = "InvalidSpec", OF_ACCEPTED, "The spec cannot be used as it is.", "Correct what the message names."
    PREFIX_NOT_ALLOWED = (
        "PrefixNotAllowed",
        OF_ACCEPTED,
        "`spec.prefix` is not one that the operator allows.",
        "Choose another one, or ask the operator's admin for `allowedPrefixes`.",
    )
    NAME_RESERVED = (
        "NameReserved",
        OF_ACCEPTED,
        "The name would lie above or below keys that are not a service's.",
        "Choose another `spec.name`.",
    )
    NAME_TAKEN = (
        "NameTaken",
        OF_ACCEPTED,
        "Another GrpcService has claimed the name, or one that contains it.",
        "Choose another `spec.name`, or delete the other GrpcService.",
    )
    UNKNOWN_REGISTRY = (
        "UnknownRegistry",
        OF_ACCEPTED,
        "`spec.registries` names a registry that the operator's settings lack; keys there stay.",
        "Correct the name, or add the registry to the settings.",
    )
    PORT_NOT_FOUND = (
        "PortNotFound",
        OF_BOTH,
        "Pods lack the port; `Accepted` is false only if every ready Pod does. Keys that a Pod has stay.",
        "Set `spec.port`, or name the container's port.",
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
        "There are Pods, and none of them is ready.",
        "Look at the Pods: `kubectl describe pod`.",
    )
    PODS_UNREADABLE = (  # the only one for which a condition is neither true nor false
        "PodsUnreadable",
        OF_PROGRAMMED,
        "The operator may not read the Pods of the namespace; their keys stay.",
        "Give it back its Role and RoleBinding there.",
    )
    REGISTRY_UNAVAILABLE = (
        "RegistryUnavailable",
        "Programmed, readiness gate",
        "etcd cannot be reached, or denies the operator its own keys.",
        "See the message, and the runbook in docs/operations.md.",
    )
    NO_LEADER = (
        "NoLeader",
        OF_PROGRAMMED,
        "No replica leads in the registry.",
        "Look at `/readyz` of the replicas.",
    )
    FOREIGN_LEADER = (
        "ForeignLeader",
        OF_PROGRAMMED,
        "Another installation or another cluster leads under this cluster id.",
        "Give one of them another `clusterId`.",
    )
    UNWRITABLE = (
        "Unwritable",
        OF_PROGRAMMED,
        "A layout cannot carry an endpoint, a route or a value, or it is too large for etcd.",
        "Change what the message names.",
    )
    BAD_WEIGHT = (
        "BadWeight",
        OF_PROGRAMMED,
        "A Pod's weight annotation is no number that is allowed; the GrpcService's weight is used.",
        "Correct the annotation.",
    )
    KEY_TAKEN = (
        "KeyTaken",
        OF_PROGRAMMED,
        "Somebody who is no Pod or GrpcService of this operator holds the key, such as a server that registers itself.",
        "Switch that off, or delete the key.",
    )
    KEY_SHARED = (
        "KeyShared",
        OF_PROGRAMMED,
        "An older GrpcService of the namespace writes the very key, so clients find the Pod.",
        "Delete one of the two GrpcServices.",
    )
    PERMISSION_DENIED = (
        "PermissionDenied",
        OF_PROGRAMMED,
        "The operator's user of etcd may not write the keys.",
        "Run the command in the message.",
    )
    INTERNAL_ERROR = (
        "InternalError",
        "Programmed, Event",
        "The operator hit an unexpected error with this object; it tries again.",
        "Report it, with the operator's log.",
    )
    MASS_DELETION = (
        "MassDeletion",
        OF_AN_EVENT,
        "Most Pods are missing from a list.",
        "See the alert `GrpcEtcdMassDeletion` in docs/operations.md.",
    )
    REGISTERED = "Registered", OF_A_GATE, "The Pod's keys are in etcd, or nothing is to be written for it."
    REGISTERING = (
        "Registering",
        OF_A_GATE,
        "The Pod's keys are not in etcd yet.",
        "Nothing; if it lasts, see the message and the GrpcService that it names.",
    )


OBEYED = (Reason.ACCEPTED, Reason.UNKNOWN_REGISTRY)  # with which a spec is in force, at least in part
KEEPING = (Reason.PORT_NOT_FOUND, Reason.UNWRITABLE)  # faults of a Pod for which nothing is deleted
HARMLESS = (Reason.BAD_WEIGHT,)  # faults with which the keys are written all the same
DENIED = (Reason.PERMISSION_DENIED, Reason.UNWRITABLE)  # faults that etcd's answer to a write has
# A condition turns to these without an Event: another condition has one, it passes, or it has an Event of its own.
WITHOUT_EVENT = (Reason.NOT_ACCEPTED, Reason.PENDING, Reason.NO_PODS)


def reference() -> str:
    """Write the table of all reasons as Markdown."""
    head = "| reason | of | meaning | what to do |\n| --- | --- | --- | --- |\n"
    return head + "".join(f"| `{each}` | {each.place} | {each.meaning} | {each.remedy} |\n" for each in Reason)
