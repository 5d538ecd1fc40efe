"""Pods that are in a registry and that the operator's own selector does not find: out of scope, or by a mistake.

A process that meets such a Pod for the first time, by its owner record, cannot distinguish a label that was taken off
from a selector that was changed. Few are deregistered as any Pod that is out of scope. Most of them, or all, speak for
a mistake in the settings: those stay in force as they now are until they are replaced, or selected again. They are read
again with each resync, since no watch reports them.
"""

import logging
from collections.abc import Collection, Iterable

from grpc_etcd_operator.controller.event_handlers import EventHandlers
from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.core.resync import ObjectRef, is_slip

log = logging.getLogger(__name__)


class LeftOut:
    """What is done with the Pods that the selector does not find; `held` are those (by UID) that stay in force."""

    def __init__(self, reconciler: EventHandlers) -> None:
        self._reconciler = reconciler
        self.held: dict[str, ObjectRef] = {}
        self._strangers: frozenset[str] = frozenset()
        self._found: dict[str, PodMessage] = {}

    def begin(self, strangers: Iterable[ObjectRef]) -> None:
        """Take which Pods are known by their owner records alone; those left out are judged together by `judge`."""
        self._strangers, self._found = frozenset(seen.uid for seen in strangers), {}

    def note(self, message: PodMessage) -> None:
        """Take a Pod that the selector does not find, as it now is."""
        uid = message.metadata.uid
        if uid in self.held:
            self._reconciler.note_listed_pod(message)
        elif uid in self._strangers:
            self._found[uid] = message
        else:
            self._reconciler.note_out_of_scope(message)

    def judge(self, pods: int, total: int) -> list[PodMessage]:
        """Judge the strangers that were found left out, of so many Pods and owners that stand in the registry.

        They are returned, to be taken by `note`.
        """
        found, self._found, self._strangers = self._found, {}, frozenset()
        if found and is_slip(len(found) + len(self.held), pods, total):
            self.held |= {
                uid: ObjectRef(uid, each.metadata.namespace, each.metadata.name) for uid, each in found.items()
            }
            log.error(
                "%d of %d registered Pods are not selected by --pod-selector; their keys stay. Restore it "
                "(podSelector in the chart), or replace these Pods if they should be deregistered",
                len(self.held),
                pods,
                extra={"event": "pods_out_of_scope"},
            )
        return list(found.values())

    def keep(self, namespace: str, missing: Collection[str]) -> list[ObjectRef]:
        """Return those of a namespace (empty: all) that a list of the selected Pods still lacks.

        Others are held no more.

        `missing` are the UIDs of what is in memory and not in the list.
        """
        here = [seen for seen in self.held.values() if not namespace or seen.namespace == namespace]
        for seen in here:
            if seen.uid not in missing:
                del self.held[seen.uid]
        return [seen for seen in here if seen.uid in self.held]
