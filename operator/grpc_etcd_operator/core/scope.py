"""What an installation takes care of. Two that differ under one cluster id would delete each other's keys. Pure.

The leader's key holds its identity and scope as JSON; a replica whose scope differs refuses to lead.
"""

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scope:
    """The namespaces (empty: all) and the label selector that limit which Pods an installation sees."""

    namespaces: tuple[str, ...] = ()
    selector: str = ""

    def covers(self, namespace: str) -> bool:
        """Say whether objects of a namespace are this installation's."""
        return not self.namespaces or namespace in self.namespaces


def write_leader(identity: str, scope: Scope) -> bytes:
    """Write the value of a leader's key."""
    record = {"identity": identity, "namespaces": sorted(scope.namespaces), "selector": scope.selector}
    return json.dumps(record, separators=(",", ":")).encode()


def read_scope(value: bytes) -> Scope | None:
    """Read the scope from a leader's key; None when the value is not a leader's."""
    try:
        record = json.loads(value)
        return Scope(tuple(sorted(record["namespaces"])), record["selector"])
    except (ValueError, TypeError, KeyError):
        return None


def is_conflicting(mine: Scope, value: bytes) -> bool:
    """Say whether the leader behind `value` takes care of something else under the same cluster id."""
    theirs = read_scope(value)
    return theirs is not None and theirs != Scope(tuple(sorted(mine.namespaces)), mine.selector)
