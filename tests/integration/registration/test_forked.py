"""A forked child changes nothing of what its parent registers, is told so at once, and may register for itself."""

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from grpc_etcd import Registry
from testbed.etcd import EtcdServer

from .conftest import ENDPOINT, KEY, Admin


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


def test_a_child_can_neither_change_nor_deregister_what_its_parent_registers(admin: Admin, registry: Registry) -> None:
    registration = registry.register(ENDPOINT, allow_unroutable=True)
    assert registration.wait(60)
    record = admin.etcd.get(KEY)

    def meddle() -> None:
        with pytest.raises(ValueError, match="was forked"):
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


CHILDREN = """
import os, sys
import grpc_etcd
def register(registry, address):
    own = registry.register(grpc_etcd.Endpoint(name="greeter", address=address), allow_unroutable=True)
    assert own.wait(60)
    return own
statuses = []
for _ in range(60):
    with grpc_etcd.Registry(sys.argv[1]) as registry:
        register(registry, "127.0.9.1:9000")
        child = os.fork()
        if child == 0:
            assert register(registry, "127.0.9.2:9000").unregister(60)
            os._exit(0)
        statuses.append(os.waitpid(child, 0)[1])
print(set(statuses))
"""


def test_a_child_registers_for_itself(etcd: EtcdServer) -> None:
    """In a process of its own: grpc.aio, where a test has used it, is always in gRPC, and forks fail by that."""
    ended = subprocess.run(
        [sys.executable, "-c", CHILDREN, etcd.endpoints],
        capture_output=True, text=True, cwd=Path.cwd(), timeout=280, check=False,
    )  # fmt: skip
    assert ended.stdout.strip() == "{0}", ended.stdout + ended.stderr
    assert "skipping fork() handlers" not in ended.stderr
