"""Settings and bootstraps: texts in, values out."""

import json
import pickle
from pathlib import Path

import pytest

from grpc_etcd.cli.etcd_search import FoundEtcd
from grpc_etcd.discovery.disk_cache import Cache
from grpc_etcd.etcd import Tls
from grpc_etcd.inspect.etcd_settings import EtcdSettings
from grpc_etcd.settings import ClientSettings, SettingsError, read_settings
from grpc_etcd.xds.bootstrap import BootstrapError, merge_bootstrap
from grpc_etcd.xds.hosts import look_up, read_socket
from grpc_etcd.xds.resources import Socket


def test_an_application_without_a_bootstrap_gets_ours() -> None:
    made = json.loads(merge_bootstrap(None, "unix:/s", "grpc-etcd/1"))
    assert made["authorities"]["etcd"]["xds_servers"][0]["server_uri"] == "unix:/s"
    assert made["node"] == {"id": "grpc-etcd/1"}


def test_an_applications_bootstrap_keeps_all_it_has() -> None:
    theirs = {"xds_servers": [{"server_uri": "x"}], "node": {"id": "app"}, "authorities": {"a": {}}, "more": 1}
    made = json.loads(merge_bootstrap(json.dumps(theirs), "unix:/s", "n"))
    assert made.pop("authorities").keys() == {"a", "etcd"}
    theirs.pop("authorities")
    assert made == theirs


def test_faults_reach_another_process_as_they_are() -> None:
    fault = pickle.loads(pickle.dumps(SettingsError(("no endpoints", "no layout"))))  # noqa: S301 - as multiprocessing
    assert fault.faults == ("no endpoints", "no layout")
    assert str(fault) == "no endpoints; no layout"


@pytest.mark.parametrize("broken", ["{", "[]", '{"authorities": []}'])
def test_a_bootstrap_that_cannot_be_merged_is_said(broken: str) -> None:
    with pytest.raises(BootstrapError, match="bootstrap"):
        merge_bootstrap(broken, "unix:/s", "n")


def test_the_environment_is_read_and_overridden() -> None:
    environ = {"GRPC_ETCD_ENDPOINTS": "a:1,b:2", "GRPC_ETCD_LAYOUTS": "jupiter, go-zero", "POD_IP": "10.0.0.1"}
    settings = read_settings(environ, prefix="wsd-reg", user=None)
    assert (settings.endpoints, settings.layouts, settings.pod_ip) == ("a:1,b:2", ("jupiter", "go-zero"), "10.0.0.1")
    assert (settings.prefix, settings.user) == ("wsd-reg", "")


def test_every_fault_is_said_at_once() -> None:
    with pytest.raises(SettingsError) as failure:
        read_settings({"GRPC_ETCD_KEY": "k", "GRPC_ETCD_PASSWORD": "p", "GRPC_ETCD_PASSWORD_FILE": "f"})
    assert len(failure.value.faults) == 4


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.1:80", Socket("10.0.0.1", 80)),
        ("[2001:db8::1]:80", Socket("2001:db8::1", 80)),
        ("example.com:80", ("example.com", 80)),
        ("10.0.0.1:65536", None),
        ("10.0.0.1", None),
        ("2001:db8::1:80", None),
        ("[fe80::1%eth0]:80", None),
        (":80", None),
        ("", None),
    ],
)
def test_addresses(address: str, expected: object) -> None:
    assert read_socket(address) == expected


def test_host_names_that_cannot_be_resolved_are_said() -> None:
    assert "127.0.0.1" in look_up("localhost")
    assert "cannot be resolved" in str(look_up("no-such-host.invalid"))
    assert "not a host name" in str(look_up("a" * 70 + ".example"))


def test_a_cache_gives_back_what_it_took(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new", "etcd:2379", "greeter")
    assert cache.load() is None
    cache.replace([(b"k", b"v"), (b"gone", b"")], 5)
    cache.replace([(b"k", b"v"), (b"\xff", b"\x00")], 6)
    cache.flush()
    kept = Cache(tmp_path / "new", "etcd:2379", "greeter").load()
    assert kept is not None
    assert (kept.revision, kept.records) == (6, {b"k": b"v", b"\xff": b"\x00"})
    assert Cache(tmp_path / "new", "etcd:2379", "other").load() is None


ENDLESS = b'{"format":1,"registry":"r","service":"greeter","revision":1e999,"records":[]}'


@pytest.mark.parametrize("broken", [b"", b"{}", b'{"format":99}', b"\x00", b"[]", b"[" * 100_000, ENDLESS])
def test_a_cache_file_that_cannot_be_used_is_passed_over(tmp_path: Path, broken: bytes) -> None:
    cache = Cache(tmp_path, "r", "greeter")
    cache.replace([(b"k", b"v")], 5)
    cache.flush()
    (file,) = tmp_path.iterdir()
    file.write_bytes(broken)
    assert cache.load() is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file", "r", "greeter")
    cache.replace([(b"k", b"v")], 5)
    cache.flush()
    assert cache.load() is None


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_break_at_the_end_of_a_variable_does_not_count(end: str) -> None:
    """A Secret made from a file that `echo` or an editor wrote has one; the operator's password file may, too."""
    names = ("ENDPOINTS", "USER", "PASSWORD", "PREFIX", "TIMEOUT")
    values = {name: "7" if name == "TIMEOUT" else f"a{name}" for name in names}
    plain, broken = ({f"GRPC_ETCD_{name}": value + more for name, value in values.items()} for more in ("", end))
    assert read_settings(broken) == read_settings(plain)
    assert read_settings(broken).password == "aPASSWORD"  # noqa: S105  nobody's


KEY = "-----BEGIN PRIVATE KEY-----"


@pytest.mark.parametrize(
    "shown",
    [
        Tls(ca="ca.crt", cert="tls.crt", key=KEY),
        ClientSettings(endpoints="etcd:2379", key=KEY, password=KEY),
        FoundEtcd(EtcdSettings(subject="Deployment a/b", namespace="a"), {"key": KEY}, None),
    ],
    ids=lambda shown: type(shown).__name__,
)
def test_what_is_printed_of_settings_holds_no_private_key(shown: object) -> None:
    assert KEY not in repr(shown)
