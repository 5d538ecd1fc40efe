"""What a resync concludes from a complete list, and when mass deregistration needs a second look. Pure.

An absence seen in a list is only a suspicion: the caller confirms each one by a consistent read before it counts.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

SAFEGUARD_COUNT = 10
SAFEGUARD_SHARE = 0.5
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # RFC 1123, as Kubernetes has it


class ObjectRef(NamedTuple):
    """A Pod or GrpcService as lists and owner records name it; `version` is its resourceVersion, if known."""

    uid: str
    namespace: str
    name: str
    version: str = ""

    @property
    def is_nameable(self) -> bool:
        """Return whether there can be such an object: a damaged owner record may hold anything."""
        return all(_NAME.fullmatch(each) for each in (self.namespace, self.name))


def find_vanished(listed: Iterable[str], known: Mapping[str, ObjectRef]) -> tuple[ObjectRef, ...]:
    """Find what is in memory and not among the UIDs of a complete list."""
    present = frozenset(listed)
    return tuple(seen for uid, seen in sorted(known.items()) if uid not in present)


def is_delivered(listed: ObjectRef, before: str | None, now: str | None) -> bool:
    """Return whether a watch has reported of an object as a list has it, or of it at all since the list was asked for.

    `before` and `now` are the versions in memory at that time and now (None: not known). Which of two versions is the
    newer one is not asked: an API server that was restored from a backup counts some of them again.
    """
    return now is not None and (now == listed.version or now != before)


def needs_safeguard(deregistered: int, total: int) -> bool:
    """Return whether deregistering so many of a registry's records at once must be confirmed one by one first."""
    return deregistered > SAFEGUARD_COUNT and deregistered > total * SAFEGUARD_SHARE


def is_slip(left_out: int, pods: int, total: int) -> bool:
    """Return whether a selector excludes so many of a registry's Pods that it is taken for a mistake: most, or all."""
    return needs_safeguard(left_out, total) or 1 < pods <= left_out
