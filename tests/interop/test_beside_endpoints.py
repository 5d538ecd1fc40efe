"""What stands beside endpoints: Jupiter's configurators, and the flush key that every reader must pass over."""

import pytest

from grpc_etcd.layouts.configurators import ConsumerConfig, ProviderConfig, RouteConfig, encode_configurator
from grpc_etcd.layouts.jupiter_v2 import JupiterV2
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue
from testbed.conditions import wait_until
from tests.interop.conftest import Interop

pytestmark = pytest.mark.interop

GREETER = "greeter"
ADDRESS = "127.0.1.1:9000"
WATCHERS = "etcd_debugging_mvcc_watcher_total"


@pytest.mark.parametrize("interop", ["jupiter027"], indirect=True)
def test_jupiter_reads_our_configurators(interop: Interop) -> None:
    route = RouteConfig(id="canary", uri="/shop.Greeter/SayHello", groups={"blue": 90, "green": 10}, nodes={ADDRESS: 1})
    provider = ProviderConfig(id="p", host=ADDRESS, zone="z1", metadata={"a": "<b>"}, enable=True)
    for configurator in (route, provider, ConsumerConfig(id="c")):
        record = encode_configurator("jupiter", GREETER, configurator)
        assert isinstance(record, KeyValue)
        interop.etcd.put(*record)
    with interop.run("watch").start() as watch:
        seen = watch.wait_for("configurators")
    assert seen["routes"] == {
        "grpc:///routes/canary": {
            "id": "canary",
            "scheme": "grpc",
            "host": "",
            "deployment": "",
            "uri": "/shop.Greeter/SayHello",
            "upstream": {"nodes": {ADDRESS: 1}, "groups": {"blue": 90, "green": 10}},
        }
    }
    (read,) = seen["providers"].values()
    assert (read["host"], read["zone"], read["metadata"], read["enable"]) == (ADDRESS, "z1", {"a": "<b>"}, True)
    assert list(seen["consumers"]) == ["grpc:///consumers/c"]


@pytest.mark.parametrize("interop", ["jupiter027", "jupiter011"], indirect=True)
def test_the_settling_touch_makes_readers_publish_and_is_no_endpoint(interop: Interop) -> None:
    record = interop.layout.encode(GREETER, Endpoint(name=GREETER, address=ADDRESS))
    flush = interop.layout.settled(GREETER, "c1")
    assert isinstance(record, KeyValue)
    assert flush is not None
    wait_until(lambda: not interop.server.metric(WATCHERS), "the end of watches that earlier tests have left")
    with interop.run("watch").start() as watch:
        watch.wait_for("set")
        wait_until(lambda: interop.server.metric(WATCHERS), "its watch, which begins after its listing")
        interop.etcd.put(*record)
        watch.wait_for_set({ADDRESS})
        before = len(watch.events("set"))
        interop.etcd.put(*flush)
        wait_until(lambda: len(watch.events("set")) == before + 1, "the flush key to make it publish")
        assert watch.last_set() == {ADDRESS}


@pytest.mark.parametrize("interop", ["naming"], indirect=True)
def test_etcd_naming_reads_the_keys_of_jupiter_v2_and_passes_its_touch_over(interop: Interop) -> None:
    layout = JupiterV2()
    record = layout.encode(GREETER, Endpoint(name=GREETER, address=ADDRESS))
    assert isinstance(record, KeyValue)
    interop.etcd.put(*record)
    interop.etcd.put(*layout.settled(GREETER, "c1"))
    with interop.run("watch", "--service=grpc:greeter:v1:unknown-mode").start() as watch:
        watch.wait_for_set({ADDRESS})
