"""A forked child changes nothing of what its parent registers, is told so at once, and may register for itself."""

import os
import time
import traceback
from collections.abc import Callable

import pytest

from grpc_etcd import Endpoint, Registry
from testbed.conditions import wait_until

from .conftest import ENDPOINT, KEY, SERVICE, Admin


def in_child(work: Callable[[], object]) -> str:
    """Run this in a forked child; give what it says is wrong."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - told to the parent
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        text = told.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return text


def test_a_child_can_neither_change_nor_withdraw_what_its_parent_registers(admin: Admin, registry: Registry) -> None:
    registration = registry.register(ENDPOINT, allow_unroutable=True)
    assert registration.wait(60)
    record = admin.etcd.get(KEY)

    def meddle() -> None:
        with pytest.raises(ValueError, match="is a fork of"):
            registration.update(weight=5)
        begun = time.monotonic()
        assert not registration.unregister(600)
        assert registration.wait() is not None
        assert time.monotonic() - begun < 300, "nobody is waited for who is not there"
        registration.release()

    assert in_child(meddle) == ""
    assert admin.etcd.get(KEY) == record
    registration.update(weight=7)
    admin.wait_for(lambda each: each and b'"weight":7' in each.value.replace(b" ", b""))
    assert registration.unregister(60)


def test_a_child_registers_for_itself(etcd_admin: Admin) -> None:
    with etcd_admin.registry() as registry:
        assert registry.register(ENDPOINT, allow_unroutable=True).wait(60)

        def register() -> None:
            own = registry.register(Endpoint(name=SERVICE, address="127.0.9.2:9000"), allow_unroutable=True)
            assert own.wait(60)
            assert own.unregister(60)

        assert in_child(register) == ""
        wait_until(lambda: list(etcd_admin.records()) == [KEY], "the parent's alone", 60)
