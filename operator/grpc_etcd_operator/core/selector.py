"""Kubernetes label selectors, decided in memory: matchLabels and matchExpressions of metav1.LabelSelector."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
# What the API server takes as a Pod's label; in a selector of ours it takes anything.
_WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_WORD}")
_VALUE = re.compile(rf"({_WORD})?")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One matchExpressions entry."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether `labels` meet this requirement; a missing key meets NotIn and DoesNotExist."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value is not None and value in self.values
            case "NotIn":
                return value is None or value not in self.values
            case "Exists":
                return value is not None
            case _:
                return value is None


@dataclass(frozen=True, slots=True)
class Selector:
    """A label selector; all parts must match. An empty one is never in force: it would take every Pod."""

    labels: tuple[tuple[str, str], ...] = ()
    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether a Pod with `labels` is selected."""
        for key, value in self.labels:  # asked thrice per change; a generator takes five times as long
            if labels.get(key) != value:
                return False
        return not self.requirements or all(requirement.matches(labels) for requirement in self.requirements)


ANYBODY = Selector()  # of a GrpcService of which nothing is obeyed, and which may mean any Pod
NOBODY = Selector(requirements=(Requirement("", "In"),))


def parse_selector(raw: Mapping[str, Any], faults: list[str]) -> Selector:
    """Read `spec.selector`; what is wrong with it is appended to `faults`."""
    labels = tuple(sorted((str(k), str(v)) for k, v in (raw.get("matchLabels") or {}).items()))
    faults += [
        f"spec.selector.matchLabels: no Pod can have the label {key!r} with the value {value!r}"
        for key, value in labels
        if not (_KEY.fullmatch(key) and _VALUE.fullmatch(value))
    ]
    requirements = tuple(_parse_requirement(entry, faults) for entry in raw.get("matchExpressions") or ())
    if not labels and not requirements:
        faults.append("spec.selector is empty; select Pods with matchLabels or matchExpressions")
    return Selector(labels, requirements)


def _parse_requirement(raw: Mapping[str, Any], faults: list[str]) -> Requirement:
    key, operator, values = str(raw.get("key", "")), str(raw.get("operator", "")), frozenset(raw.get("values") or ())
    if not key:
        faults.append("an entry of spec.selector.matchExpressions has no key")
    elif not _KEY.fullmatch(key):
        faults.append(f"spec.selector.matchExpressions: no Pod can have a label with the key {key!r}")
    # For NotIn, too, as Kubernetes does it: who misspells what is left out would register just that.
    elif wrong := sorted(value for value in map(str, values) if not _VALUE.fullmatch(value)):
        faults.append(f"spec.selector.matchExpressions: no Pod can have the label {key!r} with the value {wrong[0]!r}")
    if operator not in OPERATORS:
        faults.append(f"spec.selector.matchExpressions: the operator {operator!r} is not one of {', '.join(OPERATORS)}")
    elif (operator in ("In", "NotIn")) != bool(values):
        faults.append(
            f"spec.selector.matchExpressions: {operator} on {key!r} must {'have' if not values else 'not have'} values"
        )
    return Requirement(key, operator, values)
