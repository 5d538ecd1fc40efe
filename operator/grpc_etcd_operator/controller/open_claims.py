"""Claims that GrpcServices wait for, and which keys exist below a claim, as far as anybody knows."""

import time
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product

from grpc_etcd_operator.controller.registry_controller import RegistryController
from grpc_etcd_operator.core.claims import Claim, claims_of, read_claims
from grpc_etcd_operator.core.cluster import ASKING, ClusterCache, Verdict
from grpc_etcd_operator.core.services import GrpcService

PRUNE_AT = 64  # namespaces, from which on those are forgotten whose keys have changed. Arbitrary
GRANT_SECONDS = 30.0  # so long after the last grant is waited for claims that nobody grants. Arbitrary


class OpenClaims:
    """Knows who waits for a claim, since when, and what may be in its way. `controllers` are by registry."""

    def __init__(
        self,
        cluster_cache: ClusterCache,
        controllers: Mapping[str, RegistryController],
        etcds: Mapping[str, str],
        *,
        grant_seconds: float = GRANT_SECONDS,
    ) -> None:
        self._cluster_cache, self._controllers, self._etcds = cluster_cache, controllers, etcds
        self._asking: set[str] = set()
        self._asked_at: dict[str, tuple[int, float]] = {}  # with the generation that asks
        self._granted_at, self._grant_seconds = 0.0, grant_seconds
        self._refused: dict[str, str] = {}
        self._keys: dict[tuple[str, str], tuple[int, list[bytes]]] = {}

    def note_asking(self, concerned: Iterable[str]) -> None:
        """Record since when each asks for what it asks for now: one that is renamed on and on asks again each time."""
        for uid in concerned:
            if (service := self._cluster_cache.asking.get(uid)) is None:
                self._asked_at.pop(uid, None)
            elif self._asked_at.get(uid, (None, 0.0))[0] != service.generation:
                self._asked_at[uid] = service.generation, time.monotonic()

    def note_refused(self, uid: str, why: str) -> bool:
        """Record why one object's claims are refused for good; return whether that is news."""
        is_news = self._refused.get(uid) != why
        self._refused[uid] = why
        return is_news

    def forget_refusal(self, uid: str) -> None:
        """Record that one object's claims are refused no more, or that it is gone."""
        self._refused.pop(uid, None)

    def judge(self, uid: str) -> Verdict:
        """Return whether a GrpcService is accepted; one that waits for claims that are refused says why."""
        verdict, why = self._cluster_cache.verdict(uid), self._refused.get(uid)
        return verdict._replace(message=why) if why and verdict is ASKING else verdict

    def has_keys(self, service: GrpcService, claim: Claim) -> bool:
        """Return whether keys of a GrpcService's namespace are below a claim, as far as anybody knows."""
        namespace = service.namespace
        return any(self._stands_in(controller, namespace, claim) for controller in self._controllers_of(service, claim))

    def is_in_doubt(self, uid: str, unread: Collection[str]) -> bool:
        """Return whether what a GrpcService asks for may be held in a namespace whose GrpcServices may not be read.

        Their claims are unknown to whoever has begun since. But the keys that stand are known, and whose they are.
        """
        service = self._cluster_cache.asking.get(uid)
        if not unread or service is None or service.spec is None or self._cluster_cache.shared_names:
            return False
        asked, held = claims_of(service.spec, self._controllers.keys()), read_claims(service.status)
        new = [claim for claim in asked if claim not in held]
        return any(
            self._stands_in(controller, namespace, claim)
            for namespace, claim in product(unread, new)
            for controller in self._controllers_of(service, claim)
        )

    def _controllers_of(self, service: GrpcService, claim: Claim) -> list[RegistryController]:
        """Return where keys below a claim may stand: a registry that the settings lack may have been renamed."""
        if controller := self._controllers.get(self._etcds.get(claim.registry, claim.registry)):
            return [controller]
        held = read_claims(service.status)
        return [each for each in self._controllers.values() if claim._replace(registry=each.name) not in held]

    def _stands_in(self, controller: RegistryController, namespace: str, claim: Claim) -> bool:
        keys = self._keys_of(controller, namespace)
        at = bisect_left(keys, claim.prefix)
        stands = at < len(keys) and keys[at].startswith(claim.prefix)
        return stands or not controller.is_listed or controller.registry_cache.is_writing_below(claim.prefix)

    def _keys_of(self, controller: RegistryController, namespace: str) -> Sequence[bytes]:
        """Return the keys that the owners of a namespace have, in order and with a slash behind each.

        Thousands may ask at once, so it is recreated only when an owner record of that namespace has been put or has
        gone: a claim that cannot be given back is looked at each second, and is not to cost all that others have.
        """
        registry_cache, of = controller.registry_cache, (controller.name, namespace)
        version = registry_cache.version_in(namespace)
        if not version:
            self._keys.pop(of, None)
            return ()
        known, keys = self._keys.get(of, (0, []))
        if known != version:
            self._prune()
            keys = sorted(key + b"/" for owner in registry_cache.owners_in(namespace) for key in owner.keys)
            self._keys[of] = version, keys
        return keys

    def _prune(self) -> None:
        """Forget what is not so any more, of namespaces that may never be asked for again."""
        if len(self._keys) >= PRUNE_AT:
            self._keys = {of: known for of, known in self._keys.items() if known[0] == self._version_of(*of)}

    def _version_of(self, registry: str, namespace: str) -> int:
        return self._controllers[registry].registry_cache.version_in(namespace)

    def are_open(self, moment: float) -> bool:
        """Return whether GrpcServices that asked for claims by a moment (monotonic) wait for a grant in progress.

        One whose status the API server refuses, or that nobody grants, holds up no mark; where that is all of them it
        is no single object's trouble, and nothing is known to be complete.
        """
        now, waiting = time.monotonic(), self._cluster_cache.asking.keys() - self._refused.keys()
        asking = {uid for uid in waiting if self._asked_at.get(uid, (0, moment))[1] <= moment}
        if not self._asking or self._asking - asking:
            self._granted_at = now
        self._asking = asking
        if 0 < len(self._cluster_cache.asking) == len(self._cluster_cache.services):
            return True
        return bool(asking) and now - self._granted_at < self._grant_seconds
