"""Whatever is wrong, a failed call, a wait, stats and one line of the log say which it is, and what to do."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

import grpc_etcd
from grpc_etcd.client.base import Following
from testbed.certificates import Authority
from testbed.conditions import free_port, wait_until
from testbed.etcd import EtcdServer
from testbed.greeter import say_hello

from .conftest import SERVICE, World


class Fault(NamedTuple):
    """What is wrong, what it is called, and what the sentence about it has to hold."""

    arrange: Callable[[World], grpc_etcd.Registry]
    cause: str
    words: tuple[str, ...]


def misspelt(world: World) -> grpc_etcd.Registry:
    world.put("10.0.0.1:1", "greeters")
    return world.registry()


def unlike(world: World) -> grpc_etcd.Registry:
    world.put("10.0.0.1:1", "orders")
    return world.registry()


def closed_to_calls(world: World) -> grpc_etcd.Registry:
    world.put("10.0.0.1:1", enable=False)
    world.put("10.0.0.2:1", healthy=False)
    world.put("10.0.0.3:1", weight=0)
    return world.registry()


def broken(world: World) -> grpc_etcd.Registry:
    world.etcd.put(world.record("10.0.0.1:1").key, b"no json")
    return world.registry()


def nowhere(world: World) -> grpc_etcd.Registry:
    world.put("no-such-host.invalid:80")
    return world.registry()


def denied(world: World) -> grpc_etcd.Registry:
    world.put("10.0.0.1:1")
    world.server.etcdctl("user", "add", "nobody:secret")
    world.server.enable_auth("rootpw")
    return world.registry(user="nobody", password="secret")  # noqa: S106 - of this test alone


def without_a_user(world: World) -> grpc_etcd.Registry:
    world.server.enable_auth("rootpw")
    return world.registry()


def with_a_wrong_password(world: World) -> grpc_etcd.Registry:
    world.server.etcdctl("user", "add", "nobody:secret")
    world.server.enable_auth("rootpw")
    return world.registry(user="nobody", password="wrong")  # noqa: S106 - of this test alone


def without_a_right_to_names(world: World) -> grpc_etcd.Registry:
    admin = world.server.enable_auth("rootpw")
    world.server.add_user("narrow", "secret", ["/jupiter/greeter/", "/grpc-etcd/"], admin=admin, access="read")
    return world.registry(user="narrow", password="secret")  # noqa: S106 - of this test alone


def away(_: World) -> grpc_etcd.Registry:
    return grpc_etcd.Registry(f"127.0.0.1:{free_port()}")


def unknown_host(_: World) -> grpc_etcd.Registry:
    return grpc_etcd.Registry("no-such-host.invalid:2379")


FAULTS = {
    "misspelt": Fault(misspelt, "no such service", ("/jupiter/greeter/", "did you mean greeters?")),
    "unlike": Fault(unlike, "no such service", ("/jupiter/greeter/", "grpc-etcd check greeter")),
    "narrow": Fault(without_a_right_to_names, "no such service", ("/jupiter/greeter/", "grpc-etcd check greeter")),
    "closed to calls": Fault(closed_to_calls, "no endpoint accepts calls", ("all 3", "enable one")),
    "broken": Fault(broken, "only broken records", ("10.0.0.1:1", "JSON")),
    "nowhere": Fault(nowhere, "no endpoint can be dialled", ("no-such-host.invalid",)),
    "denied": Fault(denied, "permission denied", ("grant-permission ROLE --prefix=true read /jupiter/greeter/",)),
    "without a user": Fault(without_a_user, "login refused", ("user",)),
    "wrong password": Fault(with_a_wrong_password, "login refused", ("password",)),
    "away": Fault(away, "etcd unreachable", ("cannot be watched since", "UTC", "etcd")),
    "unknown host": Fault(unknown_host, "unknown host name", ("no-such-host.invalid", "DNS server")),
}


def tell(registry: Following, fault: Fault) -> None:
    """Look everywhere but in the log."""
    with registry.insecure_channel(SERVICE) as channel:
        with pytest.raises(grpc.RpcError) as failure:
            say_hello(channel)("x", timeout=60)
        wait_until(lambda: registry.stats()[SERVICE].cause == fault.cause, fault.cause)
        with pytest.raises(TimeoutError) as waited:
            registry.wait_for_endpoints(SERVICE, 0.5)
        for text in (failure.value.details(), str(waited.value), registry.stats()[SERVICE].reason):
            assert [word for word in fault.words if word not in str(text)] == [], text


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log says of the service as such: single endpoints have lines of their own."""
    lines = (each.getMessage() for each in caplog.records if each.name == "grpc_etcd")
    return [line for line in lines if line.startswith(f"{SERVICE}: ") and "skipped" not in line]


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_named_wherever_somebody_looks(
    own_etcd_world: World, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    fault = FAULTS[name]
    with fault.arrange(own_etcd_world) as registry:
        tell(registry, fault)
        (line,) = said(caplog)
        assert all(word in line for word in fault.words), line
        with grpc_etcd.CompoundRegistry([registry]) as compound:
            tell(compound, fault)


@pytest.mark.parametrize("kind", ["another authority", "no TLS"])
def test_a_failure_of_tls_is_named_wherever_somebody_looks(kind: str, tmp_path: Path) -> None:
    with EtcdServer.start(tls=True) as server:
        if kind == "no TLS":  # of which gRPC says no more than that the socket was closed
            registry, cause = grpc_etcd.Registry(server.endpoints), "etcd unreachable"
        else:
            ca = Authority(tmp_path / "other").issue("x").ca
            registry, cause = grpc_etcd.Registry(server.endpoints, ca=ca), "TLS to etcd failed"
        with registry:
            tell(registry, Fault(away, cause, ("cannot be watched", "uses TLS", "TLS", "CA")))


def test_an_outage_is_told_with_the_time_of_the_set_that_is_used(
    own_etcd_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world = own_etcd_world
    (server,) = world.serve()
    registry = world.registry()
    channel = world.channel(registry)
    assert say_hello(channel)("x", timeout=60) == server.address
    world.store.kill()
    wait_until(lambda: registry.stats()[SERVICE].cause == "etcd unreachable", "the outage")
    time = r"\d\d:\d\d:\d\d UTC"
    used = rf"cannot be watched since {time}: .*the last known endpoints of {time} are used \(1 endpoints\)"
    assert re.search(used, registry.stats()[SERVICE].reason)
    assert say_hello(channel)("x", timeout=60) == server.address
    assert len([line for line in caplog.messages if "Lost the watch on etcd" in line]) == 1


def test_what_is_shown_of_an_outage_follows_the_newest_failure_and_whoever_is_followed_late(
    own_etcd_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """How the connection ended, which comes first, says nothing of why there is no other one."""
    caplog.set_level("INFO", "grpc_etcd")
    world = own_etcd_world
    world.put("10.0.0.1:1")
    registry = world.registry()
    world.channel(registry)
    registry.wait_for_endpoints(SERVICE)
    world.store.kill()
    wait_until(lambda: "Connection refused" in registry.stats()[SERVICE].error, "why there is no connection")
    assert "Check that etcd runs" in registry.stats()[SERVICE].reason
    lost_at = registry.stats()[SERVICE].since
    wait_until(lambda: time.time() > lost_at + 1, "a service is asked for later")
    with registry.insecure_channel("late"):
        wait_until(lambda: registry.stats()["late"].cause == "etcd unreachable", "the service that is followed late")
        late = registry.stats()["late"]
        assert (late.since, late.connected) == (lost_at, False)
        assert "Connection refused" in late.error
    lines = [each.event for each in caplog.records if "the watch" in each.message or "Watching" in each.message]  # type: ignore[attr-defined]  # ours
    assert lines == ["etcd_unavailable"]


def test_a_static_service_that_is_missing_is_to_be_added_where_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_ETCD_STATIC", "users=127.0.0.1:1")
    with grpc_etcd.Registry.from_environ() as registry:
        tell(registry, Fault(away, "no such service", ("static services (users)", "add it to GRPC_ETCD_STATIC")))


def test_a_selection_without_a_match_says_how_many_others_there_are(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "grpc_etcd")
    world.put("10.0.0.1:1", metadata={"version": "v1"})
    selected = world.registry().select(metadata={"version": "v9"})
    tell(selected, Fault(away, "no such service", ("version=v9, and 1 without it", "correct the metadata")))
    assert "recovered" not in caplog.text, "the registry itself had no fault, it only waited for etcd"


def test_metadata_that_no_endpoint_has_are_a_fault_of_the_policy(world: World) -> None:
    world.put("10.0.0.1:1", metadata={"version": "v1"})
    registry = world.registry()
    registry.configure(SERVICE, grpc_etcd.Policy(match_metadata={"version": "v9"}))
    registry.wait_for_endpoints(SERVICE)
    fault = "match_metadata: no endpoint has the metadata 'version=v9', so all are called"
    wait_until(lambda: registry.stats()[SERVICE].policy_faults == (fault,), "the fault")
    registry.configure(SERVICE, grpc_etcd.Policy(match_metadata={"version": "v1"}))
    wait_until(lambda: not registry.stats()[SERVICE].policy_faults, "no fault")
