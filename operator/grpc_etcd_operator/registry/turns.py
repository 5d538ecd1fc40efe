"""In which order one process takes the lead of its registries: two of them may be one etcd without any sign of it.

Two registries without a common endpoint are one etcd where one names it by its address, say. Whoever leads there under
one name deregisters what only the other knows of, so one of the two is to lead, and always the same:

    the etcd was led as another registry of the settings  -> that one leads, wherever it is in the settings and
        however long its endpoints are unavailable, until it is known to be another etcd
    led as no registry of the settings, or never          -> the first of the settings, once those before it have led,
        or cannot be led now

As which registry an etcd was led is in the key that outlives all leaders; `is_apart_from` decides what is known.
"""

import logging
from collections.abc import Mapping
from itertools import takewhile
from typing import Protocol

from grpc_etcd_operator.registry.leader_view import LeaderView

log = logging.getLogger(__name__)
# A connection that has gone silent is given up after 15 s (etcd/endpoints.py). The rest is arbitrary.
APART_SECONDS = 60.0


class Led(Protocol):
    """A registry to be led."""

    @property
    def name(self) -> str:
        """Its name in the settings."""

    @property
    def election(self) -> LeaderView:
        """Who leads there."""

    @property
    def has_had_turn(self) -> bool:
        """Whether those after it in the settings have to wait for it no longer."""

    @property
    def is_cut_off(self) -> bool:
        """Whether the connection is lost, so that what is known may have changed since."""


class Turns:
    """Says which registries may be led now. Each alias in `etcds` stands for the registry that it is given there."""

    def __init__(
        self, registries: Mapping[str, Led], etcds: Mapping[str, str], apart_seconds: float = APART_SECONDS
    ) -> None:
        self._registries, self._etcds, self._apart_seconds = registries, etcds, apart_seconds
        self._waiting: set[str] = set()

    def is_turn(self, registry: str) -> bool:
        """Return whether a registry may be led now."""
        mine = self._registries[registry]
        if first := self._find_first(mine):
            if first.has_had_turn:  # else it is only just being read
                self._report(registry, first.name)
            return False
        self._waiting.discard(registry)
        before = takewhile(lambda each: each is not mine, self._registries.values())
        return all(each.has_had_turn or self._find_first(each) for each in before)

    def _find_first(self, mine: Led) -> Led | None:
        """Find the registry as which this one's etcd was led last, unless it is this one, or another etcd by now."""
        last = mine.election.last_registry
        other = self._registries.get(self._etcds.get(last, last))
        if other is None or other is mine:
            return None
        is_apart = not other.is_cut_off and mine.election.is_apart_from(other.election, self._apart_seconds)
        return None if is_apart else other

    def _report(self, registry: str, first: str) -> None:
        if registry in self._waiting:
            return
        self._waiting.add(registry)
        log.warning(
            "The last leader of this etcd used the name of another registry, which takes precedence. "
            "Give both registries a common endpoint if they are the same etcd, or remove one of them",
            extra={"event": "registry_ambiguous", "fields": {"registry": registry, "led as": first}},
        )
