"""A leader whose term is in doubt for a while, as when answers of etcd are late, and goes on, loses nothing."""

import asyncio
from typing import TYPE_CHECKING

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.registry.own import owner_prefix
from grpc_etcd_operator.controller.parts import Parts
from grpc_etcd_operator.controller.reconciler import Reconciler
from grpc_etcd_operator.core.desired import Desired, DesiredRecord, Owner
from grpc_etcd_operator.core.scope import Candidate
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.registry.cache import RegistryCache
from grpc_etcd_operator.registry.election import Election
from grpc_etcd_operator.registry.leases import Leases
from grpc_etcd_operator.registry.prefixes import Streams
from grpc_etcd_operator.registry.refusals import Refusing
from testbed.conditions import until
from testbed.etcd import EtcdServer
from tests.e2e.facts import AllSeen
from tests.e2e.test_seams import PROVIDERS, note_pod, parts, wait_addresses

if TYPE_CHECKING:
    from grpc_etcd_operator.controller.outcomes import Outcome


async def test_a_key_whose_lease_was_let_go_while_it_was_written_is_kept_alive(etcd: EtcdServer) -> None:
    async with parts(etcd) as made:
        made.client.sending.clear()
        note_pod(made.reconciler, "p1", ip="10.0.0.1")
        await until(lambda: made.client.waiting)
        made.controller.leases.release_all()  # as when a term ends that goes on before the answer has come
        assert len(made.controller.leases) == 0
        made.client.sending.set()
        await wait_addresses(made, b"10.0.0.1:9000")
        written = (await made.client.get_prefix(PROVIDERS)).records
        await until(lambda: len(made.controller.leases))  # at the latest when the key has run out
        assert (await made.client.get_prefix(PROVIDERS)).records == written


class Doubtful(Election):
    """An election whose lease may seem to have run out, as when answers of etcd are late."""

    is_in_doubt = False

    @property
    def term(self) -> int:
        return 0 if self.is_in_doubt else super().term


class OneUnit(AllSeen):
    """The facts of a world with one unit, which wants one record."""

    def desired(self, uid: str, registry: str) -> Desired:
        return Desired(Owner(uid, registry), (DesiredRecord(f"/{registry}/{uid}".encode(), b"value", "s1"),))

    def sources(self, uid: str) -> list[str]:
        return [uid]


async def test_what_came_while_a_term_was_in_doubt_is_written_when_it_goes_on(etcd: EtcdServer) -> None:
    outcomes: list[Outcome] = []
    async with Etcd(etcd.endpoints) as client:
        election = Doubtful(client, "doubt", Candidate("test"), 60, lambda: None)
        streams = Streams(lambda _prefixes: True)
        parts = Parts(
            "default",
            "doubt",
            client,
            OneUnit(),
            RegistryCache("doubt"),
            election,
            Leases(client, 30, lambda _lease: None),
            streams,
            Refusing(client, election, streams, owner_prefix("doubt")),
            Isolation(),
        )
        writer = Reconciler(parts, outcomes.append, lambda: None)
        campaign, running = asyncio.create_task(election.run_alone()), asyncio.create_task(writer.run())
        await until(lambda: election.is_leading)
        campaign.cancel()  # it would look by itself, once a second, whether the lease has run out
        await asyncio.wait([campaign])
        election.is_in_doubt = True
        writer.enqueue(["p1"])
        await until(lambda: outcomes)
        election.is_in_doubt = False
        await until(lambda: any(outcome.plan for outcome in outcomes))
        running.cancel()
        await asyncio.wait([running])
