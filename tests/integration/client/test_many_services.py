"""Hundreds of services in one process: what they cost, and what is said where a limit is met."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from grpc_etcd.client.ads import serve
from grpc_etcd.testing import MemoryRegistry
from grpc_etcd.xds.bootstrap import merge_bootstrap
from grpc_etcd.xds.resource_cache import ResourceCache
from grpc_etcd.xds.server import AdsServer
from testbed.conditions import wait_until
from testbed.greeter import say_hello

from .conftest import Load, MemoryStore, World, answers, follows, opened
from .programs import run

SERVICES = 60


@pytest.fixture
def memory() -> Iterator[World]:
    """A world without etcd, for what has nothing to do with it."""
    yield from opened(MemoryStore())


@pytest.fixture
def registry(memory: World) -> MemoryRegistry:
    registry = memory.registry()
    assert isinstance(registry, MemoryRegistry)
    return registry


def server_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("grpc-etcd-ads")]


def test_threads_of_the_server_do_not_grow_with_the_services(memory: World, registry: MemoryRegistry) -> None:
    server = memory.greeter()
    before = len(server_threads())  # of servers that other tests have left to this process
    for number in range(SERVICES):
        registry.set_endpoints(f"service-{number}", server.address)
    channels = [memory.channel(registry, f"service-{number}") for number in range(SERVICES)]
    calls = [say_hello(channel).future("x", timeout=60, wait_for_ready=True) for channel in channels]
    assert {call.result() for call in calls} == {server.address}
    wait_until(lambda: len(server_threads()) <= before + 1, f"one thread more than {before} of {server_threads()}")


def test_services_of_one_listener_are_told_apart(memory: World, registry: MemoryRegistry) -> None:
    servers = {name: memory.greeter() for name in ("users", "Users", "orders", "users.v2")}
    for name, server in servers.items():
        registry.set_endpoints(name, server.address)
    channels = {name: memory.channel(registry, name) for name in servers}
    for name, channel in channels.items():
        follows(channel, [servers[name]])
    with Load(channels["users"]) as load:
        for number in range(20):  # each is new in the listener that `users` is called by
            registry.set_endpoints(f"more-{number}", servers["orders"].address)
            assert set(answers(memory.channel(registry, f"more-{number}"), 2)) == {servers["orders"].address}
    assert load.failures == []
    assert set(load.answers) == {servers["users"].address}


def test_a_first_call_of_each_new_channel_never_fails(memory: World, registry: MemoryRegistry) -> None:
    server = memory.greeter()
    for number in range(SERVICES):
        registry.set_endpoints(f"new-{number}", server.address)
        with registry.insecure_channel(f"new-{number}") as channel:
            assert say_hello(channel)("x", timeout=30) == server.address


def test_no_first_call_of_many_threads_fails(memory: World, registry: MemoryRegistry) -> None:
    """Channels are opened on a listener while others leave the place where they waited in it."""
    server = memory.greeter()
    names = [f"new-{number}" for number in range(400)]
    for name in names:
        registry.set_endpoints(name, server.address)

    def call(name: str) -> str:
        answer: str = say_hello(memory.channel(registry, name))("x", timeout=60)
        return answer

    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(call, names)) == {server.address}


def test_a_channel_with_an_authority_of_its_own_gets_there_too(memory: World, registry: MemoryRegistry) -> None:
    server = memory.greeter()
    registry.set_endpoints("greeter", server.address)
    channel = memory.channel(registry, "greeter", options=[("grpc.default_authority", "example.org")])
    assert set(answers(channel, 3)) == {server.address}


LIMITED = """
import resource
from grpc_etcd.testing import MemoryRegistry
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 4096))
memory, channels = MemoryRegistry(), []
try:
    for number in range(200):
        channels.append(memory.insecure_channel(f"service-{number}"))
except OSError as error:
    print(len(channels) > 50, "ulimit -n 4096" in str(error) and "RLIMIT_NOFILE" in str(error) and "128" in str(error))
for channel in channels[:50]:
    channel.close()
memory.insecure_channel("after")
print("open")
"""


def test_a_limit_of_descriptors_is_said_with_its_remedy(etcd_world: World) -> None:
    done = run(etcd_world, LIMITED)
    assert done.stdout.split() == ["True", "True", "open"], done.stderr


GEVENT = """
import types
monkey = types.ModuleType("gevent.monkey")
monkey.is_module_patched = lambda name: name == "threading"
sys.modules["gevent.monkey"] = monkey
try:
    registry.insecure_channel("greeter")
except RuntimeError as error:
    print("init_gevent()" in str(error))
"""


def test_gevent_without_its_call_to_grpc_is_refused(etcd_world: World) -> None:
    done = run(etcd_world, GEVENT)
    assert done.stdout.split() == ["True"], done.stderr


@pytest.mark.parametrize("threads", [False, True], ids=["batches", "threads"])
def test_a_server_of_either_kind_serves_the_same(memory: World, registry: MemoryRegistry, threads: bool) -> None:  # noqa: FBT001 - drawn
    first, second = memory.greeter(), memory.greeter()
    registry.set_endpoints("greeter", first.address)
    resource_cache = ResourceCache()
    server = AdsServer("127.0.0.1:0", resource_cache, threads=threads)
    registry.serve_on("default", resource_cache)
    bootstrap = merge_bootstrap(None, f"127.0.0.1:{server.port}", "test")
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.TEST_ONLY_DO_NOT_USE_IN_PROD.xds_bootstrap_config", bootstrap),
    ]
    with grpc.insecure_channel("xds:///greeter", options) as channel:
        follows(channel, [first])
        registry.set_endpoints("greeter", second.address)
        follows(channel, [second])
    server.stop()


def test_a_server_beside_channels_leaves_them_alone(world: World) -> None:
    first, second = world.serve(2)
    world.delete(second.address)
    registry = world.registry(name="default-of-a-test")
    channel = world.channel(registry)
    follows(channel, [first])
    server = serve("127.0.0.1:0", registry)
    bootstrap = merge_bootstrap(None, f"127.0.0.1:{server.port}", "test")
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.TEST_ONLY_DO_NOT_USE_IN_PROD.xds_bootstrap_config", bootstrap),
    ]
    with grpc.insecure_channel("xds:///greeter", options) as outside:
        follows(outside, [first])
        world.put(second.address)
        follows(outside, [first, second])
        follows(channel, [first, second])
        server.stop()
        world.delete(first.address)
        follows(channel, [second])


def test_a_server_under_the_name_of_its_registry(world: World) -> None:
    """The two stand under the same name where the registry is the first of its process."""
    (server,) = world.serve(1)
    registry = world.registry(name="mine-beside")
    channel = world.channel(registry)
    follows(channel, [server])
    resource_cache = ResourceCache()
    registry.serve_on("mine-beside", resource_cache)
    (other,) = world.serve(1)
    follows(channel, [server, other])


CHILD = """
child = os.fork()
if child == 0:
    def used():
        return len(os.listdir("/proc/self/fd"))
    opened = [registry.insecure_channel("greeter-0")]
    call(opened[0])
    before = used()
    for number in range(1, 20):
        opened.append(registry.insecure_channel(f"greeter-{number}"))
        call(opened[-1])
    print(used() - before, flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(status)
"""


def test_a_child_of_a_process_without_channels_is_like_a_new_one(etcd_world: World) -> None:
    server = etcd_world.greeter()
    for number in range(20):
        etcd_world.put(server.address, f"greeter-{number}")
    done = run(etcd_world, CHILD)
    more, status = map(int, done.stdout.split())
    assert status == 0, done.stderr
    assert more < 2 * 19, "a connection to the server for each service, and none to ours"


EIGHT = """
channel = registry.insecure_channel("greeter")
call(channel)
hellos = [say_hello(channel) for _ in range(8)]
child = os.fork()
if child == 0:
    barrier = threading.Barrier(8)
    done = []
    def first(hello):
        barrier.wait()
        hello("x", timeout=30, wait_for_ready=True)
        done.append(hello)
    threads = [threading.Thread(target=first, args=(hello,)) for hello in hellos]
    natives = {id(hello._native) for hello in hellos}
    [each.start() for each in threads]
    [each.join(60) for each in threads]
    changed = sum(id(hello._native) not in natives for hello in hellos)
    print(len(done), changed, len({id(getattr(hello._native, "_channel", None)) for hello in hellos}), flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(status)
"""


def test_the_first_calls_of_eight_threads_in_a_child_go_over_the_childs_channel(etcd_world: World) -> None:
    etcd_world.serve(1)
    for _ in range(3):
        done = run(etcd_world, EIGHT)
        assert done.stdout.split() == ["8", "8", "1", "0"], done.stderr
