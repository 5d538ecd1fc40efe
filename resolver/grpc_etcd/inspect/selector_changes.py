"""Which change of a selector is safe to be typed as it stands: that of a label which is misspelt. Pure.

A selector that finds no Pod may also be right, and its Pods not there yet. Whoever then types a command that selects
the Pods with the nearest label registers another service's Pods, whose server answers with UNIMPLEMENTED at best. So a
command is written only where the label is that of the same service:

    the value is nearly the same        and nobody else's, or it is the GrpcService's own name
    the key differs, the value not      and the keys are nearly the same, or the value is the GrpcService's own name
    the label is the GrpcService's own  nothing is misspelt: the Pods are not there yet
"""

from collections.abc import Mapping, Sequence

from grpc_etcd.inspect.cluster import PodFacts, ServiceFacts, matches, read_selector
from grpc_etcd.inspect.nearness import is_misspelling


def find_change(
    service: ServiceFacts,
    wrong: tuple[str, str],
    near: tuple[str, str],
    pods: Sequence[PodFacts],
    others: Sequence[ServiceFacts],
) -> dict[str, str | None] | None:
    """Return the labels to be changed (None: to be removed); None where that might select another service's Pods.

    `pods` and `others`, the other GrpcServices, are those of the namespace.
    """
    change: dict[str, str | None] = {near[0]: near[1]} | ({} if near[0] == wrong[0] else {wrong[0]: None})
    found = [pod for pod in pods if matches(_apply(service.selector, change), pod.labels)]
    is_anothers = any(other.selects(pod) for other in others for pod in found)
    return None if is_anothers or not _is_meant(service, wrong, near, found) else change


def _apply(selector: Mapping[str, object], change: Mapping[str, str | None]) -> dict[str, object]:
    labels: dict[str, str | None] = {**read_selector(selector)[0], **change}
    return {**selector, "matchLabels": {key: value for key, value in labels.items() if value is not None}}


def _is_meant(service: ServiceFacts, wrong: tuple[str, str], near: tuple[str, str], found: Sequence[PodFacts]) -> bool:
    own = {service.name, service.registry_name}
    if wrong[0] != near[0]:
        return near[1] in own or is_misspelling(wrong[0], near[0])
    if wrong[1] in own or (near[1] not in own and _is_workload(near[1], found)):
        return False
    return near[1] in own or is_misspelling(wrong[1], near[1])


def _is_workload(value: str, pods: Sequence[PodFacts]) -> bool:
    """Return whether a value is the name of the workload that makes the Pods: it is no misspelling of another's."""
    return any(pod.name.startswith(f"{value}-") or pod.name.rpartition(" ")[2] == value for pod in pods)
