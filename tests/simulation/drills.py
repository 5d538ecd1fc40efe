"""Drills: faults that come together, at the worst moment, where all was well before; chance alone brings them seldom.

A drill is what opens a round now and then. As it begins all has settled and both replicas are ready, so that it can
demand more than the checks of whatever may happen: that keys are right soon after.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from grpc_etcd_operator.core.leases import lease_id
from testbed.models.api_server import PODS, SERVICES
from testbed.models.etcd_server import renews_all
from tests.simulation.checks import SLIPS, SPARE_REGISTRY, UNKNOWN_PORT
from tests.simulation.players import NAMESPACE, Pod, Replica
from tests.simulation.readers import READER, RIGHTS

if TYPE_CHECKING:
    from tests.simulation.world import World

SOON_SECONDS = 15.0  # within which keys are right after a short fault of etcd; it is asked again each second
UNSEEN_SECONDS = 20.0  # more than until a replica knows that it sees nothing
STEADY_SECONDS = 50.0  # more than what a Pod's readiness may be older than a deletion of its key (checks.py)
TAKEOVER_SECONDS = 60.0  # far more than until a replica leads that sees nothing: others come first
CUT_OFF_SECONDS = 100.0  # far more than until a leader resigns and another has done its work
# Longer than the leases' time to live: without a renewal in all that time they have run out.
RENEWAL_SECONDS = 420.0
OVERDUE_SECONDS = 45.0  # after which the synced key is gone, had something been waiting all the while
BLIND_SECONDS = 250.0  # longer than the synced key may lie
OTHER_PREFIX = b"/microservices/"  # of the layout of kratos
BESIDE = "beside"
HEAD_SECONDS = 20.0  # within which a request that is not answered has been asked again
WATCHES = 2  # of each replica: of Pods and of GrpcServices
FEWEST_KEYS = 3  # with which some may go and some stay
LONG_SECONDS = 60.0  # for longer than a reader may go by what has been
RESIGN_SECONDS = 20.0  # more than it takes a standby to lead where the leader cannot any more
APART_SECONDS = 20.0  # between two renewals that fail: what is tried again at once succeeds


class Drills:
    """The drills of a world, by name."""

    def __init__(self, world: "World", cluster: str) -> None:
        self._world, self._cluster = world, cluster

    @property
    def events(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Give all drills by name."""
        return {name: getattr(self, name) for name in sorted(dir(self)) if name.startswith("drill_")}

    def _add_pod(self, *, seconds: float) -> Pod | None:
        """Let a Pod come for a service that is switched on."""
        if not (name := self._choose_service()):
            return None
        return self._world.kubelet.add(name, seconds=seconds)

    def _choose_service(self) -> str:
        names = self._shuffled_services()
        return names[0] if names else ""

    def _shuffled_services(self) -> list[str]:
        """Give the services that are switched on, in any order."""
        names = [str(each["metadata"]["name"]) for each in self._world.services if each["spec"].get("enable", True)]
        self._world.chance.shuffle(names)
        return names

    def _find_leader(self) -> Replica | None:
        name = self._world.checks.leader
        return next((each for each in self._world.replicas if each.name == name), None)

    async def drill_leader_is_blind(self) -> None:
        """Cut the leader off from Kubernetes, and let a Pod come and another go; the standby sees both."""
        if not (leader := self._find_leader()):
            return
        self._world.chance.choice([leader.kube_wire.silence, leader.kube_wire.refuse])()
        if pod := self._add_pod(seconds=1.0):
            self._world.kubelet.turn(pod, 50.0, is_ready=False)
        self._world.incidents.pod_turns_unready()
        self._world.incidents.pod_vanishes()
        await asyncio.sleep(CUT_OFF_SECONDS)
        leader.kube_wire.heal()

    async def drill_takes_over_blind(self) -> None:
        """Let nobody be left but one that sees nothing of Kubernetes, and has missed a part of what was done."""
        leader = self._find_leader()
        blind = next((each for each in self._world.replicas if each is not leader and each.is_running), None)
        if leader is None or blind is None:
            return
        for _ in range(2):  # which it knows, and not that they become ready
            self._add_pod(seconds=UNSEEN_SECONDS + 5.0)
        await asyncio.sleep(2.0)
        self._world.chance.choice([blind.kube_wire.silence, blind.kube_wire.refuse])()
        await asyncio.sleep(UNSEEN_SECONDS)
        self._world.incidents.pod_vanishes()
        await asyncio.sleep(STEADY_SECONDS)
        await leader.kill()
        await asyncio.sleep(TAKEOVER_SECONDS)
        blind.kube_wire.heal()
        await asyncio.sleep(SOON_SECONDS)
        leader.start()

    async def drill_stranger_is_first(self) -> None:
        """Let a process register itself at a Pod's address just before that is ready; the leader hears of it late."""
        if not (leader := self._find_leader()):
            return
        leader.etcd_wire.stream_delay = 5.0
        address = self._world.kubelet.next_ip
        if pod := self._add_pod(seconds=self._world.chance.uniform(0.0, 2.0)):
            self._world.register_stranger(address, pod.app)
        await asyncio.sleep(8.0)
        leader.etcd_wire.heal()

    async def drill_write_fails_once(self) -> None:
        """Let etcd be without space just while a Pod is to be written; nothing else calls for a second try."""
        self._world.etcd.space.is_full = True
        self._add_pod(seconds=0.5)
        await asyncio.sleep(self._world.chance.choice([2.0, 25.0]))  # in which statuses have been written, too
        self._world.etcd.space.is_full = False
        await asyncio.sleep(SOON_SECONDS)
        self._world.checks.demand_keys(f"{SOON_SECONDS:g} s after etcd was without space")

    async def drill_renewals_fail(self) -> None:
        """Let the stream end with each renewal of one Pod's lease, but for those that are tried again at once."""
        pods = [pod for pod in self._world.kubelet.pods.values() if pod.is_ready and not pod.is_terminating]
        item = self._world.api.find(PODS, NAMESPACE, self._world.chance.choice(pods).name) if pods else None
        if item is None:
            return
        lease, failed_at = lease_id(self._cluster, item["metadata"]["uid"]), 0.0

        def fails(renewed: int) -> bool:
            nonlocal failed_at
            now = self._world.etcd.now()
            if renewed != lease or now - failed_at < APART_SECONDS:
                return False
            failed_at = now
            return True

        self._world.etcd.fails_renewal = fails
        await asyncio.sleep(RENEWAL_SECONDS)
        self._world.etcd.fails_renewal = renews_all

    async def drill_write_is_needed_no_longer(self) -> None:
        """Let the write of a policy fail until it is not wished any more; nothing else shows that etcd is well."""
        if not (name := self._choose_service()):
            return
        update, policy = self._world.api.update, {"policy": {"timeout": "1s"}}
        self._world.etcd.space.is_full = True
        update(SERVICES, NAMESPACE, name, lambda item: item["spec"].update(policy))
        await asyncio.sleep(3.0)
        update(SERVICES, NAMESPACE, name, lambda item: item["spec"].pop("policy", None))
        await asyncio.sleep(2.0)
        self._world.etcd.space.is_full = False

    async def drill_nobody_has_seen_all(self) -> None:
        """Restart both replicas where Kubernetes lets them list nothing, and let Pods go and come meanwhile."""
        for replica in self._world.replicas:
            await replica.end()
            for resource in (PODS, SERVICES):
                self._world.api.forbid(replica.name, "list", resource)
        self._world.incidents.pod_vanishes()
        self._add_pod(seconds=1.0)
        for replica in self._world.replicas:
            replica.start()
        await asyncio.sleep(BLIND_SECONDS)
        self._world.api.forbidden.clear()

    async def drill_leader_loses_while_it_writes(self) -> None:
        """Let the one replica that there is lose the lead between the lease of a Pod and the Pod's keys."""
        if not (leader := self._find_leader()):
            return
        for replica in self._world.replicas:
            if replica is not leader:
                await replica.end()
        leader.etcd_wire.fastest = leader.etcd_wire.slowest = 0.5
        self._add_pod(seconds=2.0)
        await asyncio.sleep(2.0 + self._world.chance.uniform(0.0, 1.0))
        self._world.checks.revoke_leader()
        await asyncio.sleep(5.0)
        leader.etcd_wire.heal()

    async def drill_slip_beside(self) -> None:
        """Let a GrpcService with a slip in it select the gated Pods of another."""
        if not (name := self._choose_service()) or self._world.api.find(SERVICES, NAMESPACE, BESIDE):
            return
        self._world.create_service(BESIDE, {"selector": {"matchLabels": {"app": name}}, "port": UNKNOWN_PORT})
        self._world.kubelet.add(name, is_gated=True, seconds=self._world.chance.choice([0.0, 2.0]))
        await asyncio.sleep(SOON_SECONDS)
        self._world.checks.demand_gates(f"with a slip in another GrpcService for {SOON_SECONDS:g} s", BESIDE)
        self._world.api.delete(SERVICES, NAMESPACE, BESIDE)

    async def drill_prefix_is_refused(self) -> None:
        """Let an owner ask for a layout whose prefix etcd refuses; all else goes on."""
        if not (name := self._choose_service()) or not self._world.asks_for_users:
            return
        layouts = {"layouts": ["jupiter", "kratos"]}
        self._world.api.update(SERVICES, NAMESPACE, name, lambda item: item["spec"].update(layouts))
        self._add_pod(seconds=1.0)
        await asyncio.sleep(OVERDUE_SECONDS)
        when = f"{OVERDUE_SECONDS:g} s after one GrpcService was refused a prefix"
        self._world.checks.demand_keys(when)
        self._world.checks.demand_synced(when)

    async def drill_write_is_refused(self) -> None:
        """Let etcd refuse to write what may be read, in transactions that have Pods of another service, too."""
        names, leader = self._shuffled_services(), self._find_leader()
        if not names or leader is None or not self._world.asks_for_users:
            return
        self._world.grant_reading(OTHER_PREFIX)
        layouts = {"layouts": ["jupiter", "kratos"]}
        leader.etcd_wire.fastest = leader.etcd_wire.slowest = 0.5  # what comes meanwhile goes together
        for number in range(6):
            self._world.kubelet.add(names[number % len(names)], seconds=1.0 + number / 10)
        await asyncio.sleep(1.2)
        self._world.api.update(SERVICES, NAMESPACE, names[0], lambda item: item["spec"].update(layouts))
        await asyncio.sleep(5.0)
        leader.etcd_wire.heal()
        await asyncio.sleep(OVERDUE_SECONDS)
        self._world.checks.demand_keys(f"{OVERDUE_SECONDS:g} s after etcd refused one GrpcService's writes")
        self._world.revoke_reading(OTHER_PREFIX)

    async def drill_slip_in_use(self) -> None:
        """Let an owner make all slips in a service with ready Pods, and the operator be restarted meanwhile."""
        if not (name := self._choose_service()):
            return
        for slip in SLIPS:
            self._world.api.update(SERVICES, NAMESPACE, name, lambda item, slip=slip: item["spec"].update(slip))  # type: ignore[misc]  # mypy sees no default
            await asyncio.sleep(self._world.chance.choice([1.0, 10.0]))
        await self._world.incidents.operator_is_restarted()
        await asyncio.sleep(SOON_SECONDS)

    async def drill_tenant_attacks(self) -> None:
        """Let the hostile tenant try one thing after the other while all is well."""
        for _ in range(6):
            self._world.tenant.tenant_attacks()
            await asyncio.sleep(self._world.chance.choice([0.5, 3.0]))

    async def drill_leads_apart(self) -> None:
        """Cut the leader off from the second registry, so that the other replica leads that one from then on."""
        if not (leader := self._find_leader()) or not (wire := leader.etcd_wires.get(SPARE_REGISTRY)):
            return
        wire.refuse()
        await asyncio.sleep(RESIGN_SECONDS)
        wire.heal()
        self._world.kubelet.add("beta", is_gated=True)

    async def drill_node_is_lost(self) -> None:
        """Let the node of a gated Pod be given up, some seconds after the Pod has turned ready."""
        if not (name := self._choose_service()):
            return
        pod = self._world.kubelet.add(name, is_gated=True)
        await asyncio.sleep(SOON_SECONDS)
        self._world.kubelet.give_up(pod, LONG_SECONDS)
        await asyncio.sleep(SOON_SECONDS)
        self._world.checks.demand_keys(f"{SOON_SECONDS:g} s after a node was given up")

    async def drill_keys_go_unseen(self) -> None:
        """Let the reader be cut off as the synced key goes, and keys be deleted before it comes back."""
        self._world.reader.wire.refuse()
        await self._let_nobody_vouch(self._lose_unseen)
        self._world.reader.wire.heal()

    async def drill_keys_go_by_and_by(self) -> None:
        """Let keys go where nobody vouches for that, one long before the others."""
        await self._let_nobody_vouch(self._lose_by_and_by)

    async def drill_keys_go_one_by_one(self) -> None:
        """Let keys go where nobody vouches for that, the first long before the last."""
        await self._let_nobody_vouch(self._lose_one_by_one)

    async def drill_keys_go_with_their_history(self) -> None:
        """Let etcd lose its data where nobody leads, and one server register itself again."""
        await self._let_nobody_vouch(self._lose_history)

    async def _let_nobody_vouch(self, lose: Callable[[dict[bytes, bytes]], Awaitable[None]]) -> None:
        """End all replicas and let keys go: a reader keeps what it knows, whichever way they went."""
        name = self._choose_service()
        keys = self._world.keys_of(name)
        if len(keys) < FEWEST_KEYS:
            return
        for replica in self._world.replicas:
            await replica.end()
        self._world.excuse()
        await lose(keys)
        await asyncio.sleep(LONG_SECONDS)
        for replica in self._world.replicas:
            replica.start()

    async def _lose_unseen(self, keys: dict[bytes, bytes]) -> None:
        for key in keys:
            self._world.etcd.delete(key)
        await asyncio.sleep(1.0)
        self._world.reader.wire.heal()

    async def _lose_by_and_by(self, keys: dict[bytes, bytes]) -> None:
        first, second, *_ = keys
        self._world.etcd.delete(first)
        self._world.etcd.delete(second)
        await asyncio.sleep(1.0)
        self._world.etcd.put(second, keys[second])
        await asyncio.sleep(LONG_SECONDS)
        self._world.excuse()
        for key in keys:
            self._world.etcd.delete(key)

    async def _lose_one_by_one(self, keys: dict[bytes, bytes]) -> None:
        first, *others = keys
        self._world.etcd.delete(first)
        await asyncio.sleep(LONG_SECONDS)
        self._world.excuse()
        for key in others:
            self._world.etcd.delete(key)
            await asyncio.sleep(1.0)

    async def _lose_history(self, keys: dict[bytes, bytes]) -> None:
        self._world.incidents.etcd_loses_all()
        await asyncio.sleep(3.0)
        first, *_ = keys
        self._world.etcd.put(first, keys[first])
        await asyncio.sleep(3.0)
        self._world.etcd.delete(first)  # else it would be the server's own, and no replica would write it

    async def drill_reader_is_refused(self) -> None:
        """Let the reader have no right for a while, and then, with all its rights, see a service be switched off."""
        if not (name := self._choose_service()):
            return
        self._world.refuse_reader(*RIGHTS)
        await asyncio.sleep(SOON_SECONDS)
        self._world.grant_all(READER)
        await asyncio.sleep(LONG_SECONDS)
        self._switch(name, is_on=False)
        await asyncio.sleep(2 * LONG_SECONDS)
        self._switch(name, is_on=True)

    def _switch(self, name: str, *, is_on: bool) -> None:
        if self._world.api.find(SERVICES, NAMESPACE, name):
            self._world.api.update(SERVICES, NAMESPACE, name, lambda item: item["spec"].update(enable=is_on))

    async def drill_gate_meets_conflicts(self) -> None:
        """Let others change a Pod in the very moments in which its gate is opened."""
        if not (name := self._choose_service()):
            return
        self._world.kubelet.add(name, is_gated=True)
        self._world.api.conflicts = 2
        await asyncio.sleep(SOON_SECONDS)
        self._world.checks.demand_gates(f"{SOON_SECONDS:g} s after conflicts", "")

    async def drill_keys_go_with_their_history_unseen(self) -> None:
        """Let etcd lose its data where nobody leads, and the reader learn of it when one server is there again."""
        await self._let_nobody_vouch(self._lose_history_unseen)

    async def drill_no_watch_is_answered(self) -> None:
        """Let all watches end, and no request for the next ones be answered; all else is well."""
        self._world.api.unanswered = WATCHES * len(self._world.replicas)
        self._world.api.end_watches()
        self._add_pod(seconds=1.0)
        self._world.incidents.pod_vanishes()
        await asyncio.sleep(1.0)
        self._world.api.unanswered = 0
        await asyncio.sleep(HEAD_SECONDS)
        self._world.checks.demand_keys(f"{HEAD_SECONDS:g} s after watches were not answered")
        await asyncio.sleep(LONG_SECONDS)
        self._world.checks.demand_synced(f"{HEAD_SECONDS + LONG_SECONDS:g} s after watches were not answered")

    async def _lose_history_unseen(self, keys: dict[bytes, bytes]) -> None:
        self._world.reader.wire.refuse()
        self._world.incidents.etcd_loses_all()
        first, *_ = keys
        self._world.etcd.put(first, keys[first])
        await asyncio.sleep(1.0)
        self._world.reader.wire.heal()
        await asyncio.sleep(LONG_SECONDS)
        self._world.excuse()
        self._world.etcd.delete(first)  # as in `_lose_history`

    def _choose_reference(self) -> str:
        """Give a service that is switched on and names a Service, which there is."""
        named = [each for each in self._shuffled_services() if each in self._world.targets.names]
        return named[0] if named else ""

    async def drill_service_goes_in_a_gap(self) -> None:
        """Let a Service go while nobody watches, and a replica begin that has never seen it, before it comes back."""
        if not (name := self._choose_reference()):
            return
        self._world.api.end_watches()
        self._world.targets.delete(name)
        self._world.api.compact()
        await asyncio.sleep(SOON_SECONDS)
        self._world.checks.demand_reason(f"{SOON_SECONDS:g} s after its Service went", name, "ServiceNotFound")
        self._world.kubelet.add(name, seconds=1.0)
        await self._world.incidents.operator_is_restarted()
        await asyncio.sleep(SOON_SECONDS)
        self._world.targets.create(name)
        await asyncio.sleep(SOON_SECONDS)
        self._world.checks.demand_keys(f"{SOON_SECONDS:g} s after its Service came back")

    async def drill_services_may_not_be_read(self) -> None:
        """Take the right to Services away: who names one keeps what it has, and all else goes on."""
        if not (name := self._choose_reference()):
            return
        self._world.targets.target_may_not_be_read()
        await asyncio.sleep(UNSEEN_SECONDS + SOON_SECONDS)
        self._world.kubelet.add(name, seconds=1.0)
        self._add_pod(seconds=1.0)
        await asyncio.sleep(LONG_SECONDS)
        when = f"{LONG_SECONDS:g} s after the right to Services was taken away"
        self._world.checks.demand_keys(when)
        self._world.checks.demand_synced(when)
        self._world.checks.demand_reason(when, name, "ServicesUnreadable")
        self._world.api.forbidden.clear()

    async def drill_leaves_the_scope(self) -> None:
        """Let a Pod lose the label by which the operator finds it, and get it back soon."""
        await self._world.incidents.pod_leaves_the_scope()
        await asyncio.sleep(SOON_SECONDS)
        self._world.checks.demand_keys(f"{SOON_SECONDS:g} s after a Pod's label was put back")
