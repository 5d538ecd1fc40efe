"""What a program's functions raise ends no thread of ours, not even `sys.exit()`: they work for others, too."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from grpc_etcd import Endpoint
from grpc_etcd.client.registry import Registry
from grpc_etcd.etcd import Etcd, WatchUpdate
from grpc_etcd.etcd.credentials import Credentials
from grpc_etcd.etcd.errors import UnreadableFile
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registration.offloop import in_own_thread
from grpc_etcd.registry.layout import Layout, Rejected
from grpc_etcd.testing import MemoryEtcd
from grpc_etcd.threads import start_thread
from testbed.conditions import PATIENCE_SECONDS, free_port, wait_until


class NobodyExpectsError(BaseException):
    """No `except Exception` catches it."""


ENDING = [KeyboardInterrupt, SystemExit, NobodyExpectsError]
every_ending = pytest.mark.parametrize("ending", ENDING)


def raising(ending: type[BaseException]) -> Callable[..., Any]:
    def call(*_: object) -> None:
        raise ending("I end it")

    return call


@every_ending
def test_a_password_function_is_at_fault_for_the_login_alone(ending: type[BaseException]) -> None:
    """As in the threads that watch etcd, or register: they log in too."""
    faults = list[BaseException]()

    def log_in() -> None:
        with Etcd(f"127.0.0.1:{free_port()}", user="app", password=raising(ending)) as etcd:
            try:
                etcd.status()
            except BaseException as error:  # noqa: BLE001 - whatever it is
                faults.append(error)

    thread = start_thread(log_in, name="test")
    thread.join(PATIENCE_SECONDS)
    assert [type(each).__mro__[1] for each in faults] == [UnreadableFile]
    assert "the password function raised" in str(faults[0])


def test_a_ctrl_c_in_the_programs_own_thread_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt):
        Credentials("app", raising(KeyboardInterrupt)).log_in()


@pytest.fixture
def etcd() -> Iterator[Etcd]:
    with Etcd(f"127.0.0.1:{free_port()}") as etcd:
        yield etcd


@every_ending
def test_a_watch_goes_on_after_work_that_it_was_given_and_who_is_told_of_that(
    etcd: Etcd, ending: type[BaseException]
) -> None:
    over = threading.Event()
    hub = etcd.watch_hub(on_error=raising(ending))
    hub.run(raising(ending))
    hub.run(over.set)
    assert over.wait(PATIENCE_SECONDS)


@every_ending
def test_a_watch_goes_on_after_a_consumer(etcd: Etcd, ending: type[BaseException]) -> None:
    news = list[WatchUpdate]()
    hub = etcd.watch_hub()
    hub.follow(b"a/", raising(ending))
    hub.follow(b"b/", news.append)
    wait_until(lambda: news, "the other is told that etcd is away")


@every_ending
def test_a_watch_in_memory_goes_on_after_a_consumer(ending: type[BaseException]) -> None:
    news = list[WatchUpdate]()
    etcd = MemoryEtcd()
    hub = etcd.watch_hub()
    hub.follow(b"a/", raising(ending))
    hub.run(raising(ending))
    hub.follow(b"a/", news.append)
    wait_until(lambda: news, "the other is told what there is")
    hub.close()


@dataclass(frozen=True)
class Ending(Jupiter):
    """A layout of the program's that ends when it reads a certain service."""

    ending: type[BaseException] = SystemExit

    def decode(self, service: str, key: bytes, value: bytes) -> Endpoint | Rejected | None:
        if service == "broken":
            raise self.ending
        return Jupiter.decode(self, service, key, value)


@every_ending
def test_other_services_are_followed_beside_one_that_a_layout_ends_at(ending: type[BaseException]) -> None:
    etcd, layout = MemoryEtcd(), Jupiter()
    for name in ("broken", "greeter"):
        written = layout.encode(name, Endpoint(name=name, address="10.0.0.1:1"))
        assert not isinstance(written, Rejected)
        etcd.put(*written)
    layouts: list[Layout] = [Ending(ending=ending)]
    with Registry(etcd, layouts=layouts, name="ending") as registry:
        registry.follow("broken")
        wait_until(lambda: "it raised" in str(registry.stats()["broken"]), "it is reported of that service")
        assert registry.endpoints("greeter", PATIENCE_SECONDS).endpoints


@every_ending
async def test_who_waits_for_work_in_a_thread_is_told(ending: type[BaseException]) -> None:
    with pytest.raises(RuntimeError, match="it raised"):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await in_own_thread(raising(ending))
