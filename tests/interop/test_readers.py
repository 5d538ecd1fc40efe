"""The frameworks' own clients list, watch and call what our encoders wrote."""

import pytest

from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue
from testbed.conditions import wait_until
from tests.interop.conftest import LAYOUTS, Backends, Interop

pytestmark = pytest.mark.interop

GREETER = "greeter"
ADDRESSES = ["127.0.1.1:9000", "127.0.1.2:9000", "127.0.1.3:9000"]
WITH_RESOLVER = ["jupiter027", "jupiter011", "naming", "gozero"]

every_program = pytest.mark.parametrize("interop", LAYOUTS, indirect=True)


def _record(interop: Interop, address: str) -> KeyValue:
    metadata = {"team": "shop", "version": "v2"}
    endpoint = Endpoint(name=GREETER, address=address, weight=7, metadata=metadata, instance=f"0b5e-{address}")
    record = interop.layout.encode(GREETER, endpoint)
    assert isinstance(record, KeyValue)
    return record


def _put(interop: Interop, addresses: list[str]) -> None:
    for address in addresses:
        interop.etcd.put(*_record(interop, address))


@every_program
def test_it_lists_what_we_wrote(interop: Interop) -> None:
    _put(interop, ADDRESSES)
    with interop.run("list").start() as listing:
        endpoints = listing.wait_for("listed")["endpoints"]
    assert [endpoint["address"] for endpoint in endpoints] == ADDRESSES
    if interop.program in {"jupiter027", "kitex"}:
        assert {endpoint["weight"] for endpoint in endpoints} == {7}
    if interop.program not in {"jupiter011", "gozero"}:  # these two tell nothing but addresses
        assert all({"team": "shop", "version": "v2"}.items() <= e["metadata"].items() for e in endpoints)


@every_program
def test_it_sees_each_change_that_we_write(interop: Interop) -> None:
    with interop.run("watch").start() as watch:
        watch.wait_for("set")
        _put(interop, ADDRESSES[:2])
        watch.wait_for_set(set(ADDRESSES[:2]))
        interop.etcd.delete(_record(interop, ADDRESSES[0]).key)
        watch.wait_for_set({ADDRESSES[1]})
        _put(interop, ADDRESSES[2:])
        watch.wait_for_set(set(ADDRESSES[1:]))


@pytest.mark.parametrize("interop", WITH_RESOLVER, indirect=True)
@pytest.mark.parametrize("backends", [3], indirect=True)
def test_it_calls_what_we_wrote_and_no_more_what_we_deleted(interop: Interop, backends: Backends) -> None:
    _put(interop, backends.addresses)
    with interop.run("call").start() as calling:
        wait_until(lambda: calling.answering() == set(backends.addresses), "calls to all three")
        interop.etcd.delete(_record(interop, backends.addresses[0]).key)
        wait_until(lambda: calling.answering() == set(backends.addresses[1:]), "no more calls to the deleted one")
        for address in backends.addresses[1:]:
            interop.etcd.delete(_record(interop, address).key)
        wait_until(calling.has_only_failed, "no calls to anybody")


@pytest.mark.parametrize(
    "interop", ["jupiter027", "jupiter011", "naming", "gozero", "gomicro4", "gomicro5"], indirect=True
)
def test_it_takes_ipv6_in_brackets(interop: Interop) -> None:
    _put(interop, ["[2001:db8::5]:9000"])
    with interop.run("list").start() as listing:
        endpoints = listing.wait_for("listed")["endpoints"]
    assert [endpoint["address"] for endpoint in endpoints] == ["[2001:db8::5]:9000"]
