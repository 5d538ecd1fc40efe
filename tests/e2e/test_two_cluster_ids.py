"""The operators of two cluster ids that share an etcd and come to claim one key: they do not fight over it for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.own import OwnerRecord, owner_key
from grpc_etcd_operator.controller.outcomes import Outcome
from grpc_etcd_operator.controller.registry_controller import RegistryController, Views
from grpc_etcd_operator.core.desired import Desired, DesiredRecord, Owner
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.core.plan import MOST_REPAIRS
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.scope import Candidate
from grpc_etcd_operator.isolation import Isolation
from testbed.conditions import until
from testbed.etcd import EtcdServer
from tests.e2e.facts import AllSeen

LAYOUT, POD = Jupiter(), "pod"


def make_record() -> KeyValue:
    encoded = LAYOUT.encode("greeter", Endpoint(name="greeter", address="10.0.0.1:9000"))
    assert isinstance(encoded, KeyValue)
    return encoded


RECORD = make_record()


class Facts(AllSeen):
    """One Pod, of which all is known."""

    def desired(self, uid: str, _: str) -> Desired:
        return Desired(Owner(uid, "shop", uid), (DesiredRecord(RECORD.key, RECORD.value, "greeter", LAYOUT),))

    def sources(self, _: str) -> list[str]:
        return ["greeter"]


@dataclass
class Cluster:
    controller: RegistryController
    outcomes: list[Outcome]

    @property
    def is_written(self) -> bool:
        return bool(self.outcomes) and "greeter" in self.outcomes[-1].written

    @property
    def is_taken(self) -> bool:
        return bool(self.outcomes) and [each.reason for each in self.outcomes[-1].faults] == [Reason.KEY_TAKEN]


@asynccontextmanager
async def leading(etcd: EtcdServer, name: str) -> AsyncIterator[Cluster]:
    outcomes: list[Outcome] = []
    seen = (lambda: True, lambda: 0.0, lambda: False)
    views = Views(Facts(), *seen, str, lambda _, outcome: outcomes.append(outcome), lambda: None)
    ttls = {"lease_ttl_seconds": 30, "leader_ttl_seconds": 60}
    client = Etcd(etcd.endpoints)
    controller = RegistryController("default", name, client, Candidate(name), views, Isolation(), **ttls)
    controller.feed.follow([controller.streams.learn(LAYOUT, "greeter")])
    task = asyncio.create_task(controller.run())
    controller.enqueue([POD])
    yield Cluster(controller, outcomes)
    task.cancel()
    await asyncio.wait([task])
    await controller.close()


async def test_of_two_cluster_ids_that_claim_one_key_one_gives_way_and_says_so(etcd: EtcdServer) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Etcd(etcd.endpoints))
        east = await stack.enter_async_context(leading(etcd, "east"))
        await until(lambda: east.is_written)
        # West had the key a moment ago, as after a delete by hand that both have seen, and an answer that came first.
        lease = await client.lease(30, lease_id("west", POD))
        record = OwnerRecord(namespace="shop", pod=POD, grpc_services=("shop/greeter",), keys=(RECORD.key,))
        await client.put(owner_key("west", POD), record.to_json(), lease=lease)
        await client.put(RECORD.key, RECORD.value, lease=lease)
        west = await stack.enter_async_context(leading(etcd, "west"))
        await until(lambda: east.is_taken != west.is_taken and (east.is_written or west.is_written))
        holder, other = (east, west) if east.is_written else (west, east)
        await until(lambda: other.is_taken)
        found = await client.get(RECORD.key)
        assert found is not None
        assert found.lease == lease_id(holder.controller.cluster, POD)
        assert found.version <= 2 * MOST_REPAIRS
