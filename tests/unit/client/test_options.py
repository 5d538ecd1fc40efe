"""Options, settings and targets: refused where they are given, with a sentence that helps."""

import asyncio
import importlib
import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import grpc_etcd
from grpc_etcd import CompoundRegistry, Policy, Registry, RegistryOptions, SettingsError, StaticRegistry, Tls
from grpc_etcd.client.targets import is_address, service_name
from grpc_etcd.layouts.kratos import Kratos
from grpc_etcd.options import parse_static
from grpc_etcd.settings import ClientSettings, read_settings
from grpc_etcd.testing import MemoryRegistry

ANY: Any = Registry
ANY_POLICY: Any = Policy


class OfAsyncio:
    """What of a client of asyncio a registry looks at."""

    def list_watch(self, *_: bytes) -> None: ...

    async def get_prefix(self, _: bytes) -> None: ...


async def use_in_a_loop(of_threads: Any) -> None:
    async with of_threads:
        pass


TEXT = "a text"
ETCD = "etcd:2379"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ANY(ETCD, prefxi="shop"), TypeError, "no option 'prefxi'; did you mean 'prefix'?"),
        (lambda: ANY(OfAsyncio()), TypeError, "is of asyncio, and a registry works in threads"),
        (lambda: ANY(ETCD, username="u"), TypeError, "did you mean 'user'?"),
        (lambda: ANY(endpoints=ETCD), TypeError, "did you mean 'etcd'? (it has etcd, prefix"),
        (lambda: Registry.from_environ(etcd=ETCD), TypeError, "did you mean 'endpoints'?"),
        (lambda: Registry.from_environ(etcd_timeout_seconds=3), TypeError, "did you mean 'timeout'?"),
        (lambda: ANY(ETCD).bind(None, "x", drain=3), TypeError, "did you mean 'drain_seconds'? (it has server"),
        (lambda: ANY(ETCD).wait_for_endpoints("x", timeout=3), TypeError, "did you mean 'timeout_seconds'?"),
        (lambda: ANY(ETCD).aio.configure("x", timeout_seconds=3), TypeError, "Policy(timeout_seconds=...)"),
        (lambda: ANY_POLICY(timeout=2), TypeError, "Policy has no option 'timeout'; did you mean 'timeout_seconds'?"),
        (lambda: asyncio.run(use_in_a_loop(ANY(ETCD))), TypeError, "for asyncio write `async with registry.aio`"),
        (
            lambda: asyncio.run(use_in_a_loop(StaticRegistry({"a": "b:1"}).insecure_channel("a"))),
            TypeError,
            "registry.aio.insecure_channel",
        ),
        (lambda: ANY(ETCD, timeout=3), TypeError, "did you mean 'etcd_timeout_seconds'?"),
        (lambda: MemoryRegistry(prefxi="x"), TypeError, "MemoryRegistry has no option 'prefxi'"),  # type: ignore[call-arg]  # a mistake, as is tested
        (
            lambda: StaticRegistry({}, prefix="x"),
            TypeError,
            "StaticRegistry has no option 'prefix', which is for etcd",
        ),
        (lambda: StaticRegistry({}, layouts="kratos"), TypeError, "no option 'layouts', which is for etcd"),
        (StaticRegistry.from_environ, TypeError, "Registry.from_environ() reads GRPC_ETCD_STATIC"),
        (lambda: MemoryRegistry("etcd:2379"), TypeError, "a Registry follows a real etcd"),  # type: ignore[arg-type]  # a mistake, as is tested
        (lambda: MemoryRegistry.from_environ(endpoints="etcd:2379"), TypeError, "takes a MemoryEtcd"),
        (lambda: StaticRegistry({}, prefxi="x"), TypeError, "StaticRegistry has no option 'prefxi'"),  # type: ignore[call-arg]  # a mistake, as is tested
        (lambda: Registry.from_environ(retries=3), TypeError, "Registry.from_environ has no option 'retries'"),
        (lambda: Registry.from_environ(endpoints=3), TypeError, "3 is neither etcd's endpoints"),
        (lambda: Registry.from_environ(endpoints=ETCD, layouts=3), TypeError, "layouts: 3 is neither"),
        (lambda: ANY(ETCD).bind(None, "x", weigth=5), TypeError, "Registry.bind has no option 'weigth'"),
        (lambda: ANY(ETCD).register(None, weigth=5), TypeError, "Registry.register has no option 'weigth'"),
        (lambda: ANY(ETCD, tls=True), TypeError, "tls: True is not grpc_etcd.Tls"),
        (lambda: ANY(ETCD, tls=Tls(), ca="x"), ValueError, "excludes ca"),
        (lambda: ANY(ETCD, cert="x"), ValueError, "a certificate and its key"),
        (lambda: ANY(ETCD, ca=3), TypeError, "ca: 3 is not a path"),
        (lambda: ANY(ETCD, user="u"), ValueError, "the user 'u' is given without a password"),
        (lambda: ANY(ETCD, password=TEXT), ValueError, "a password is given without a user"),
        (lambda: ANY(ETCD, user="u", password=TEXT, password_file=TEXT), ValueError, "exclude each other"),
        (lambda: ANY(ETCD, user="u", password=3), TypeError, "password: it must be"),
        (lambda: ANY(ETCD, layouts="krato"), ValueError, "there is no layout 'krato'; the layouts are jupiter"),
        (lambda: ANY(ETCD, layouts=()), ValueError, "layouts: it is empty"),
        (lambda: ANY(ETCD, layouts=[3]), TypeError, "layouts: 3 is neither"),
        (lambda: ANY(ETCD, layouts=3), TypeError, "layouts: 3 is neither"),
        (lambda: ANY(ETCD, zone=1), TypeError, "zone: 1 is not a string"),
        (lambda: ANY(ETCD, cluster=1), TypeError, "cluster: 1 is not a string"),
        (lambda: ANY(ETCD, prefix=1), TypeError, "prefix: 1 is not a string"),
        (lambda: ANY(ETCD, name="a/b"), ValueError, "name: the name 'a/b' contains '/'"),
        (lambda: ANY(ETCD, pod_ip="10.0.0.1:80"), ValueError, "pod_ip: '10.0.0.1:80' is not an IP address"),
        (lambda: ANY(ETCD, etcd_timeout_seconds=0), ValueError, "etcd_timeout_seconds: 0 is not a time above 0"),
        (lambda: ANY(ETCD, etcd_timeout_seconds="5"), TypeError, "etcd_timeout_seconds: '5' is not a number"),
        (lambda: ANY(ETCD, cache_dir=3), TypeError, "cache_dir: 3 is not a path"),
        (lambda: ANY(ETCD, schemes=()), TypeError, "schemes: () is neither"),
        (lambda: ANY(ETCD, static={"greeter": "nowhere"}), ValueError, "the static service 'greeter': the address"),
        (lambda: ANY(ETCD, static="greeter"), TypeError, "is not a mapping"),
        (lambda: ANY("http//x"), ValueError, "'http//x' is not an etcd endpoint"),
        (lambda: ANY("etcd:99999"), ValueError, "'etcd:99999' is not an etcd endpoint"),
        (lambda: ANY(""), ValueError, "no etcd endpoint given"),
        (lambda: ANY([]), ValueError, "no etcd endpoint given"),
        (lambda: ANY([3]), TypeError, "3 is not a string"),
        (lambda: ANY(3), TypeError, "3 is neither etcd's endpoints"),
        (lambda: StaticRegistry({"greeter": []}), ValueError, "the static service 'greeter': it has no address"),
        (lambda: parse_static("a=b:1;a=b:2"), ValueError, "'a' is named twice"),
        (lambda: ANY(ETCD).configure("a/b"), ValueError, "the name 'a/b' contains '/'"),
        (lambda: ANY(ETCD).configure(""), ValueError, "the name is empty"),
        (lambda: ANY(ETCD).insecure_channel(b"greeter"), TypeError, "b'greeter' is not the name of a service"),
        (lambda: StaticRegistry({"greeter": ["localhost"]}), ValueError, "the static service 'greeter'"),
        (lambda: CompoundRegistry([ETCD]), TypeError, "'etcd:2379' is not a Registry"),  # type: ignore[list-item]  # a mistake, as is tested
        (
            lambda: CompoundRegistry([ANY(ETCD).select(metadata={"a": "b"})]),
            TypeError,
            "where {'a': 'b'}> is not a Registry",
        ),
    ],
)
def test_what_no_registry_can_use_is_refused_when_it_is_made(
    make: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as refusal:
        make()
    assert words in str(refusal.value)


def test_one_set_of_names_serves_code_variables_and_flags() -> None:
    """`ca`, `cert`, `key`, `server_name`, `user` and `password_file` mean in code what they mean in the environment."""
    files = {"ca": "ca.crt", "cert": "c.crt", "key": "c.key", "server_name": "etcd", "user": "u", "password_file": "p"}
    environ = {"GRPC_ETCD_ENDPOINTS": ETCD} | {f"GRPC_ETCD_{name.upper()}": text for name, text in files.items()}
    made: Any = ANY(ETCD, **files)
    read: Any = Registry.from_settings(read_settings(environ))
    assert made._tls == read._tls == Tls("ca.crt", "c.crt", "c.key", "etcd")
    assert made._password == read._password == Path("p")
    named: Any = Registry.from_settings(read_settings({"GRPC_ETCD_ENDPOINTS": ETCD, "GRPC_ETCD_SERVER_NAME": "etcd"}))
    assert named._tls == Tls(server_name="etcd")


def test_one_layout_or_scheme_need_no_sequence() -> None:
    assert ANY(ETCD, layouts="kratos").layouts == (Kratos(),)
    assert ANY(ETCD, layouts=Kratos()).layouts == (Kratos(),)
    assert ANY(ETCD, schemes="http")._schemes == ("http",)


def test_help_shows_every_option() -> None:
    for made in (Registry, MemoryRegistry, StaticRegistry):
        assert RegistryOptions.__annotations__.keys() <= inspect.signature(made).parameters.keys()
    settings = {field.name for field in fields(ClientSettings)}
    assert settings <= inspect.signature(Registry.from_environ).parameters.keys()
    assert {"layouts", "metrics_address", "allow_unroutable"} <= inspect.signature(Registry.bind).parameters.keys()
    for option in RegistryOptions.__annotations__:
        assert f"`{option}`" in str(RegistryOptions.__doc__)


def test_every_fault_of_the_environment_is_said_at_once() -> None:
    with pytest.raises(SettingsError) as refusal:
        Registry.from_environ(
            endpoints="http//x, y:99999,", layouts=("jupyter",), user="u", timeout=0, pod_ip="x", cert="c", name="a/b"
        )
    assert [fault.partition(" ")[0].rstrip(":") for fault in refusal.value.faults] == [
        "GRPC_ETCD_TIMEOUT",
        "POD_IP",
        "GRPC_ETCD_LAYOUTS",
        "GRPC_ETCD_CERT",
        "GRPC_ETCD_USER",
        "GRPC_ETCD_ENDPOINTS",
        "GRPC_ETCD_ENDPOINTS",
        "GRPC_ETCD_NAME",
    ]


def test_what_has_no_variable_is_given_beside_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_ETCD_ENDPOINTS", ETCD)
    monkeypatch.setenv("GRPC_ETCD_CA", "ca.crt")
    made: Any = Registry.from_environ(stop_seconds=10, lease_ttl_seconds=60, schemes="http", tls=Tls())
    assert (made.stop_seconds, made._lease_ttl_seconds, made._schemes, made._tls) == (10, 60, ("http",), Tls())
    kept: Any = Registry.from_environ()
    assert kept._tls == Tls("ca.crt")


def test_a_misspelt_variable_is_logged_once_and_what_kubernetes_sets_is_not(caplog: pytest.LogCaptureFixture) -> None:
    environ = {"GRPC_ETCD_ENDPOINTS": ETCD, "GRPC_ETCD_LAYUOTS": "jupiter", "GRPC_ETCD_CA_FILE": "ca.crt"}
    of_a_service = {"PORT": "", "SERVICE_HOST": "", "SERVICE_PORT": "", "PORT_2379_TCP_ADDR": "", "OPERATOR_NAME": ""}
    for _ in range(2):
        read_settings(environ | {f"GRPC_ETCD_{name}": value for name, value in of_a_service.items()})
    said = [each for each in caplog.records if each.module == "settings"]  # a registry of another test may log, too
    assert {each.levelno for each in said} == {logging.WARNING}
    assert [each.getMessage() for each in said] == [
        "The variable GRPC_ETCD_LAYUOTS is not read; did you mean GRPC_ETCD_LAYOUTS?",
        "The variable GRPC_ETCD_CA_FILE is not read; did you mean GRPC_ETCD_CA?",
    ]


def test_texts_of_the_environment_that_cannot_be_read_are_said() -> None:
    with pytest.raises(SettingsError) as refusal:
        read_settings({"GRPC_ETCD_ENDPOINTS": ETCD, "GRPC_ETCD_TIMEOUT": "5s", "GRPC_ETCD_STATIC": "greeter"})
    assert refusal.value.faults == (
        "GRPC_ETCD_TIMEOUT: '5s' is not a number of seconds",
        "GRPC_ETCD_STATIC: 'greeter' is not of the form name=host:port[,host:port...]",
    )


def test_static_services_are_read() -> None:
    text = " greeter=localhost:50051 ; users=[::1]:1,10.0.0.1:2; "
    assert parse_static(text) == {"greeter": ("localhost:50051",), "users": ("[::1]:1", "10.0.0.1:2")}
    settings = read_settings({"GRPC_ETCD_STATIC": text})
    assert settings.static == parse_static(text)


def test_no_password_is_shown() -> None:
    assert TEXT not in repr(ClientSettings(endpoints=ETCD, user="u", password=TEXT))
    assert TEXT not in repr(ANY(ETCD, user="u", password=TEXT))


@pytest.mark.parametrize(
    "target",
    [
        "localhost:50051",
        "localhost:99999",
        ":1",
        "[::1]:50051",
        "10.0.0.1:1",
        "dns:///x:1",
        "unix:///tmp/x",
        "unix:x",
        "ipv4:1.2.3.4:5",
        "xds:///x",
    ],
)
def test_addresses_are_grpcs_affair(target: str) -> None:
    assert is_address(target)
    with pytest.raises(ValueError, match="is an address, and a registry finds services by name"):
        service_name(target)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("greeter", "greeter"),
        ("etcd:///greeter", "greeter"),
        ("etcd:///a%3Fb", "a?b"),
        ("a:b", "a:b"),
        ("shop.v1", "shop.v1"),
    ],
)
def test_services_are_the_registrys(target: str, name: str) -> None:
    assert not is_address(target)
    assert service_name(target) == name


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("etcd:///greeter?zone=a", "has something after the name"),
        ("etcd:///greeter#x", "has something after the name"),
        ("etcd://host/greeter", "not of the form etcd:///name"),
        ("etcd:/greeter", "not of the form etcd:///name"),
        ("etcd:greeter", "not of the form etcd:///name"),
        ("http://localhost:50051", "the scheme 'http', which neither"),
        ("etcd:///localhost:50051", "is an address"),
    ],
)
def test_targets_that_are_neither_are_refused(target: str, words: str) -> None:
    assert not is_address(target)
    with pytest.raises(ValueError, match=r"target|address") as refusal:
        service_name(target)
    assert words in str(refusal.value)


def test_etcd_targets_are_taken_wherever_a_service_is_named() -> None:
    with MemoryRegistry() as registry:
        registry.set_endpoints("etcd:///greeter", "10.0.0.1:1")
        assert registry.target("etcd:///greeter") == registry.target("greeter")
        assert registry.read_endpoints("etcd:///greeter") == registry.list_services("greeter")
        assert registry.wait_for_endpoints("etcd:///greeter", 20).service == "greeter"
        assert registry.endpoints("etcd:///greeter").service == "greeter"
        registry.configure("etcd:///greeter", grpc_etcd.Policy(timeout_seconds=7))
        assert next(iter(registry.watch("etcd:///greeter"))).service == "greeter"
        registry.insecure_channel("etcd:///greeter").close()
        assert {each.service for each in registry.stats().services} == {"greeter"}


@pytest.mark.parametrize(
    ("name", "needed"), [("opentelemetry", "opentelemetry.metrics"), ("prometheus", "prometheus_client.core")]
)
def test_metrics_without_their_package_name_the_extra_that_has_it(
    monkeypatch: pytest.MonkeyPatch, name: str, needed: str
) -> None:
    monkeypatch.setitem(sys.modules, needed, None)
    monkeypatch.delitem(sys.modules, f"grpc_etcd.metrics.{name}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'grpc-etcd\[{name}\]'"):
        importlib.import_module(f"grpc_etcd.metrics.{name}")
