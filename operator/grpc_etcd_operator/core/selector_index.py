"""Which GrpcServices select a Pod, found by the Pod's labels: an event of a Pod costs what its labels name. No I/O."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from grpc_etcd_operator.core.pods import Pod
from grpc_etcd_operator.core.services import GrpcService

Label = tuple[str, str]
ByLabel = dict[str, dict[Label | None, dict[tuple[str, int], GrpcService]]]  # by namespace and label


class Form(NamedTuple):
    """A GrpcService as it is or was, and whether that is in force."""

    service: GrpcService
    is_in_force: bool


class SelectorIndex:
    """The forms of each GrpcService. What is not in force has an index of its own: it slows down no Pod's events."""

    def __init__(self) -> None:
        self._in_force: ByLabel = {}
        self._refused: ByLabel = {}
        self._forms: dict[str, tuple[GrpcService, ...]] = {}

    def put(self, uid: str, forms: Iterable[Form]) -> None:
        """Put these forms of a GrpcService in the place of those that it had; those without a selector are left out."""
        for number, each in enumerate(self._forms.pop(uid, ())):
            for index in (self._in_force, self._refused):
                _take_out(index, each, (uid, number))
        found = tuple(form for form in forms if form.service.asked)
        if found:
            self._forms[uid] = tuple(form.service for form in found)
        for number, (each, is_in_force) in enumerate(found):
            index = self._in_force if is_in_force else self._refused
            index.setdefault(each.namespace, {}).setdefault(_label(each), {})[uid, number] = each

    def forms(self, uid: str) -> tuple[GrpcService, ...]:
        """Return the forms of a GrpcService."""
        return self._forms.get(uid, ())

    def in_force(self, pod: Pod) -> Iterator[GrpcService]:
        """Yield the forms in force that select a Pod."""
        return _matching(self._in_force, pod)

    def refused(self, pod: Pod) -> Iterator[GrpcService]:
        """Yield the forms that would select a Pod, and are not in force."""
        return _matching(self._refused, pod)


def _matching(index: ByLabel, pod: Pod) -> Iterator[GrpcService]:
    by_label, labels = index.get(pod.namespace, {}), pod.labels
    candidates = [by_label[label] for label in (None, *labels.items()) if label in by_label]
    return (
        service
        for found in candidates
        for service in found.values()
        if (spec := service.asked) and spec.selector.matches(labels)
    )


def _take_out(index: ByLabel, service: GrpcService, entry: tuple[str, int]) -> None:
    """Take an entry out of an index, and whatever is empty then: namespaces and labels come and go."""
    by_label, label = index.get(service.namespace, {}), _label(service)
    by_label.get(label, {}).pop(entry, None)
    if not by_label.get(label):
        by_label.pop(label, None)
    if not by_label:
        index.pop(service.namespace, None)


def _label(service: GrpcService) -> Label | None:
    """Choose the label under which a GrpcService is found; None where its selector names no exact label."""
    spec = service.asked
    labels = spec.selector.labels if spec else ()
    return labels[0] if labels else None
