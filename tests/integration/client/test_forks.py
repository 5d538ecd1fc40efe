"""Processes that fork while a registry is in use."""

import textwrap
from pathlib import Path

import pytest

from .conftest import World
from .programs import lines, run


@pytest.fixture
def world(etcd_world: World) -> World:
    """Another process can reach a real etcd only."""
    return etcd_world


STREAMS = (
    6  # of a process: a watch for its channels, a watch and a keep-alive for what it registers, and what is opening
)


FORKS = """
channel = registry.insecure_channel("greeter")
call(channel)
results = {"inherited": [], "new": []}
for number in range(100):
    child = os.fork()
    if child == 0:
        try:
            kind = "inherited" if number % 2 else "new"
            used = channel if number % 2 else registry.insecure_channel("greeter")
            call(used)
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(9)
    _, status = os.waitpid(child, 0)
    results["inherited" if number % 2 else "new"].append(status)
    call(channel)
print(*(sum(1 for status in each if status) for each in results.values()))
"""


@pytest.mark.parametrize("environment", [{}, {"GRPC_ENABLE_FORK_SUPPORT": "1"}], ids=["default", "fork-support"])
def test_a_hundred_forks_with_a_channel_open(world: World, environment: dict[str, str]) -> None:
    world.serve(1)
    assert lines(world, FORKS, environment) == ["0", "0"]


WATCHING = """
seen = []
def watch():
    for services in registry.watch_all():
        seen.append(len(services))
threading.Thread(target=watch, daemon=True).start()
while not seen:
    time.sleep(0.01)
"""


def test_children_of_a_process_that_watches_all_services_live(world: World) -> None:
    """Up to a quarter of them crashed: gRPC says of each fork with a thread in it that it skips its fork handlers."""
    world.serve(1)
    done = run(world, WATCHING + FORKS)
    assert done.stdout.split() == ["0", "0"], done.stderr
    assert "skipping fork" not in done.stderr


def test_a_watch_of_all_services_goes_on_after_a_fork(world: World) -> None:
    world.serve(1)
    record = world.record("10.0.0.1:1", "reporter")
    program = f"""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    registry.etcd.put({record.key!r}, {record.value!r})
    deadline = time.monotonic() + 60
    while seen[-1] < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    print(*seen)
    """
    assert lines(world, WATCHING + textwrap.dedent(program)) == ["1", "2"]


def test_a_watch_of_all_services_is_over_in_a_child_though_a_thread_of_the_parent_waits_in_it(world: World) -> None:
    world.serve(1)
    program = """
    watch, seen = registry.watch_all(), []
    def follow():
        for services in watch:
            seen.append(services)
    threading.Thread(target=follow, daemon=True).start()
    while not seen:
        time.sleep(0.01)
    child = os.fork()
    if child == 0:
        threading.Timer(30, os._exit, [1]).start()
        print(next(watch, "over"), flush=True)
        os._exit(0)
    print(os.waitpid(child, 0)[1])
    """
    assert lines(world, program) == ["over", "0"]


CLEANED = """
import shutil, tempfile, pathlib
for folder in pathlib.Path(tempfile.gettempdir()).glob("grpc-etcd-*"):
    shutil.rmtree(folder)
"""


def assert_parent_follows(world: World, before: str = "", environment: dict[str, str] | None = None) -> None:
    """Fork, once something has happened `before`, and let the parent find an endpoint that comes then."""
    first = world.serve(1)[0]
    second = world.greeter()
    record = world.record(second.address)
    calls = 'channel = registry.insecure_channel("greeter")\ncall(channel)\n'
    program = f"""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    registry.etcd.put({record.key!r}, {record.value!r})
    deadline = time.monotonic() + 60
    while call(channel) != {second.address!r} and time.monotonic() < deadline:
        pass
    print(call(channel), call(channel))
    """
    assert set(lines(world, calls + before + textwrap.dedent(program), environment)) == {first.address, second.address}


def test_the_parent_follows_on_after_a_fork(world: World) -> None:
    assert_parent_follows(world)


def test_two_threads_may_fork_at_once(world: World) -> None:
    world.serve(1)
    program = """
    channel = registry.insecure_channel("greeter")
    call(channel)
    failed = []
    def fork():
        for _ in range(25):
            child = os.fork()
            if child == 0:
                try:
                    call(channel)
                    os._exit(0)
                except BaseException as error:
                    print(error, file=sys.stderr, flush=True)
                    os._exit(9)
            _, status = os.waitpid(child, 0)
            if status:
                failed.append(status)
    threads = [threading.Thread(target=fork) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    call(channel)
    print(failed)
    """
    done = run(world, program)
    assert done.stdout.split() == ["[]"], done.stderr


def test_a_child_of_a_fork_in_the_midst_of_the_first_use_has_its_own_registry(world: World) -> None:
    """It would wait for ever for a lock that a thread of its parent holds."""
    world.serve(1)
    program = """
    begun, over = threading.Event(), threading.Event()
    def begin():
        with registry.exclusively():
            begun.set()
            over.wait()
    threading.Thread(target=begin).start()
    begun.wait()
    child = os.fork()
    if child == 0:
        call(registry.insecure_channel("greeter"))
        os._exit(0)
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    if ended[0] == 0:
        os.kill(child, 9)
    over.set()
    print(ended[0] == child, ended[1])
    """
    assert lines(world, program) == ["True", "0"]


def test_a_child_says_of_services_what_it_knows_itself(world: World) -> None:
    """What its parent knew at the fork never changes there: a worker would be unready, or an alert fire, for ever."""
    world.put("127.0.0.1:1", "absent", enable=False)
    world.serve(1)
    program = """
    channel = registry.insecure_channel("absent")
    registry.endpoints("absent", 30)
    found = [registry.ready(), *registry.stats()]
    child = os.fork()
    if child == 0:
        print(*found, registry.ready(), *registry.stats())
        call(registry.insecure_channel("greeter"))
        print(registry.ready(), *registry.stats(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    """
    assert lines(world, program) == ["False", "absent", "True", "True", "greeter"]


def test_no_ended_stream_is_left_to_the_garbage_collector_of_a_forked_child(world: World) -> None:
    """There it would wait for a lock that was held when the child was copied, and its thread with it."""
    world.serve(1)
    program = """
    import gc
    gc.disable()
    def streams():
        return sum(isinstance(each, grpc.RpcError) and isinstance(each, grpc.Call) for each in gc.get_objects())
    channel = registry.insecure_channel("greeter")
    registry.register(grpc_etcd.Endpoint(name="forking", address="10.0.0.1:1"))
    for _ in range(12):
        call(channel)
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    call(channel)
    print(streams())
    """
    (left,) = lines(world, program)
    assert int(left) <= STREAMS, left


def test_a_fork_after_temporary_folders_were_cleaned_up_leaves_the_parent_hearing(world: World, tmp_path: Path) -> None:
    assert_parent_follows(world, CLEANED, {"TMPDIR": str(tmp_path)})


def test_multiprocessing_children_call_on(world: World) -> None:
    server = world.serve(1)[0]
    program = """
    import multiprocessing
    channel = registry.insecure_channel("greeter")
    call(channel)
    def work(_):
        return call(channel)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        print(*set(pool.map(work, range(40))))
    """
    assert lines(world, program) == [server.address]


CLOSED = """
channel = registry.insecure_channel("greeter")
hello = say_hello(channel)
call(channel)
channel.close()
child = os.fork()
if child == 0:
    try:
        hello("x", timeout=30)
    except ValueError:
        os._exit(7)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""


def test_a_channel_that_was_closed_is_closed_in_a_child_too(world: World) -> None:
    world.serve(1)
    assert lines(world, CLOSED) == ["7"]
