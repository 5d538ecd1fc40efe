"""What is kept for GrpcServices that may come back: their CRD was missing when this process began."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from grpc_etcd_operator.controller.registry_controller import RegistryController
from grpc_etcd_operator.core.desired import Desired, leads_elsewhere
from grpc_etcd_operator.core.leases import lease_id


class CrdReturn:
    """Keeps the keys of GrpcServices that have not come back yet. `controllers` are by registry."""

    def __init__(self, controllers: Mapping[str, RegistryController]) -> None:
        self._controllers = controllers
        self._came: set[str] | None = None  # by reference, while others are awaited
        self._awaited: tuple[tuple[int, ...], set[str]] = (), set()  # the others' namespaces, and as of when

    @property
    def is_awaited(self) -> bool:
        """Return whether GrpcServices that were never seen may come again."""
        return self._came is not None

    def begin(self, known: Iterable[str]) -> None:
        """Record that all but the known ones (by reference) may come again."""
        if self._came is None:
            self._came = set(known)

    def note(self, reference: str) -> None:
        """Record that one has come."""
        if self._came is not None:
            self._came.add(reference)

    def end(self) -> None:
        """Record that whatever has not come by now is gone for good."""
        self._came = None
        for controller in self._controllers.values():
            controller.enqueue(list(controller.registry_cache.owners))

    def is_awaited_in(self, namespace: str) -> bool:
        """Return whether GrpcServices of a namespace are awaited that have keys: one may select any Pod there."""
        if self._came is None:
            return False
        caches = [controller.registry_cache for controller in self._controllers.values()]
        known = (len(self._came), *(cache.owners_version for cache in caches))
        if self._awaited[0] != known:
            owners = [owner for cache in caches for owner in cache.owners.values()]
            self._awaited = known, {each.namespace for each in owners if not self._came.issuperset(each.grpc_services)}
        return namespace in self._awaited[1]

    def keep(self, desired: Desired, registry: str) -> Desired:
        """Add to what a serving Pod ought to have all that it has of those which may come again."""
        if self._came is None:
            return desired
        controller, uid = self._controllers[registry], desired.unit.uid
        owner = controller.registry_cache.owner(uid)
        awaited = frozenset(owner.grpc_services if owner else ()) - self._came
        # What no owner record names may be of any of them.
        nameless = frozenset(
            key
            for key in controller.registry_cache.unnamed(lease_id(controller.cluster, uid))
            if (record := controller.registry_cache.record(key))
            and not leads_elsewhere(desired.host, key, record.value)
        )
        keeps = desired.keeps | (nameless - {each.key for each in desired.wanted})
        return replace(desired, keep_references=desired.keep_references | awaited, keeps=keeps)
