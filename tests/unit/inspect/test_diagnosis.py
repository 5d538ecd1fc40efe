"""What `grpc-etcd check` concludes, from facts alone."""

import dataclasses
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from grpc_etcd.etcd import Unavailable
from grpc_etcd.inspect.checks import Facts, find_faults, is_outdated, is_too_old
from grpc_etcd.inspect.codes import Code, Severity
from grpc_etcd.inspect.entries import Entry
from grpc_etcd.inspect.findings import Finding
from grpc_etcd.inspect.probes import NEEDS_NO_TLS, explain_failure, fold
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registry.endpoint import Endpoint, Kind, unroutable
from grpc_etcd.registry.layout import KeyValue, Rejected
from grpc_etcd.settings import ClientSettings
from testbed.certificates import Authority

JUPITER = make_layout("jupiter")
ADDRESS = "10.0.0.7:9000"
IN_ORDER = Facts(
    service="greeter", sought=("jupiter '/jupiter/greeter/'",), entries=(), synced=("c1",), version="3.6.16"
)


def entry(address: str = ADDRESS, lease: int = 7, **fields: Any) -> Entry:
    endpoint = dataclasses.replace(Endpoint(name="greeter", address=address), **fields)
    record = JUPITER.encode("greeter", endpoint)
    assert isinstance(record, KeyValue)
    return Entry("greeter", "jupiter", record.key, lease, endpoint)


def findings(*entries: Entry, **facts: Any) -> list[Finding]:
    return find_faults(dataclasses.replace(IN_ORDER, entries=entries, **facts))


def only(*entries: Entry, **facts: Any) -> Finding:
    (finding,) = findings(*entries, **facts)
    return finding


def test_a_registry_in_order_gives_nothing() -> None:
    assert findings(entry()) == []


def test_nothing_found_names_where_it_was_looked_for() -> None:
    assert "there are no records at jupiter '/jupiter/greeter/'" in only().problem


def test_an_empty_registry_that_an_operator_keeps_has_no_fault() -> None:
    assert only(service=None, synced=("a",)).severity is Severity.NOTE
    assert [each.severity for each in findings(service=None, synced=())] == [Severity.ERROR, Severity.NOTE]


def test_nothing_found_names_those_that_may_be_meant() -> None:
    assert only().remedy == "Check the name, the prefix and that servers run."
    meant = only(near=("greeter", "greeter-2")).remedy
    assert meant == "Check the name (did you mean 'greeter' or 'greeter-2'?), the prefix and that servers run."


def test_what_would_have_found_it_is_named_and_nothing_else() -> None:
    finding = only(elsewhere={"--layout kratos": 3})
    assert (finding.severity, finding.remedy) == (Severity.ERROR, "Use --layout kratos.")
    assert only(similar=("Greeter",)).remedy == "Use the name 'Greeter' as it is."


def test_a_broken_value_does_not_hide_the_good_one() -> None:
    broken = Entry("greeter", "jupiter", b"/jupiter/greeter/providers/grpc://x", 7, Rejected("it is not JSON"))
    finding = only(entry(), broken)
    assert (finding.subject, "it is not JSON" in finding.problem) == (broken.key.decode(), True)
    assert finding.remedy.endswith(f"etcdctl get {broken.key.decode()}"), "it may be that of a server that runs"


def test_key_and_value_must_say_the_same_address() -> None:
    other = dataclasses.replace(entry(), read=Endpoint(name="greeter", address="10.0.0.8:9000"))
    assert only(other).problem == "the key says 10.0.0.7:9000, the value says 10.0.0.8:9000"
    assert only(other).remedy.endswith(f"etcdctl get {entry().key.decode()}"), "its server may run"


def test_an_unroutable_address_is_not_called_unreachable_as_well() -> None:
    finding = only(entry("127.0.0.1:9000"), unreachable={"127.0.0.1:9000": "refused"})
    assert "a loopback address" in finding.problem


def test_a_silent_address_says_why() -> None:
    assert "Connection refused" in only(entry(), unreachable={ADDRESS: "Connection refused"}).problem


def test_a_key_without_lease() -> None:
    assert "the key has no lease" in only(entry(lease=0)).problem


def test_an_endpoint_that_is_not_healthy_is_named_beside_others() -> None:
    finding = only(entry(), entry("10.0.0.8:9000", healthy=False))
    assert finding.severity is Severity.WARNING
    assert "1 of 2 endpoints are marked as not healthy: 10.0.0.8:9000" in finding.problem
    assert "not healthy" in only(entry(healthy=False)).problem


@pytest.mark.parametrize("fields", [{"enable": False}, {"weight": 0}])
def test_a_service_is_drained_only_when_no_endpoint_is_left(fields: dict[str, Any]) -> None:
    out = entry("10.0.0.8:9000", **fields)
    assert "all 1 endpoints are disabled, not healthy or have weight 0" in only(out).problem
    assert findings(entry(), out) == []


def test_a_governor_replaces_no_server() -> None:
    governor = entry("10.0.0.9:9990", kind=Kind.GOVERNOR)
    assert only(entry(enable=False), governor).code is Code.ALL_OUT
    assert only(governor).problem.startswith("only governors or consumers are at")
    assert findings(governor, service=None) == [], "as of an application that only calls others"
    assert findings(entry(), entry("10.0.0.9:9990", kind=Kind.GOVERNOR, enable=False)) == []


@pytest.mark.parametrize(
    ("facts", "level", "words"),
    [
        ({"synced": ()}, Severity.NOTE, "no operator maintains this registry"),
        ({"synced": (), "has_owners": True}, Severity.ERROR, "no synced key"),
        ({"synced": None}, Severity.WARNING, "is not allowed to read /grpc-etcd/"),
        ({"missing_keys": ("/jupiter/x",)}, Severity.WARNING, "does not exist"),
        ({"alarms": ("NOSPACE",)}, Severity.ERROR, "the active alarm NOSPACE"),
        ({"version": "3.5.9"}, Severity.WARNING, "3.5.9"),
    ],
)
def test_what_etcd_and_the_operator_do_wrong(facts: dict[str, object], level: Severity, words: str) -> None:
    finding = only(entry(), **facts)
    assert finding.severity is level
    assert words in finding.problem
    assert finding.remedy


def test_the_worst_comes_first() -> None:
    levels = [each.severity for each in findings(entry(lease=0), synced=(), version="3.5.9")]
    assert levels == [Severity.ERROR, Severity.WARNING, Severity.NOTE]


def test_a_release_that_is_too_old_is_an_error_and_not_a_warning_as_well() -> None:
    finding = only(entry(), version="3.3.27")
    assert (finding.code, finding.is_error) == (Code.ETCD_TOO_OLD, True)
    assert [is_too_old(version) for version in ("3.4.0", "2.3.8", "", "x")] == [False, True, False, False]


def test_of_a_part_nothing_need_be_there() -> None:
    assert findings(is_part=True) == []


def test_a_ready_pod_that_does_not_answer_from_here_is_no_error() -> None:
    finding = only(entry(), unreachable={ADDRESS: "timed out"}, ready_hosts=frozenset({"10.0.0.7"}))
    assert (finding.code, finding.is_error) == (Code.NOT_FROM_HERE, False)


def refused(*addresses: str) -> dict[str, Any]:
    return {"unreachable": dict.fromkeys(addresses, "Connection refused"), "refusing": frozenset(addresses)}


def test_a_ready_pod_that_refuses_a_machine_which_reaches_another_has_lost_its_server() -> None:
    """One of two Pods serves nothing, so every second call fails; that used to be a warning and exit code 0."""
    hosts, other = frozenset({"10.0.0.7", "10.0.0.8"}), entry("10.0.0.8:9000")
    finding = only(entry(), other, ready_hosts=hosts, **refused(ADDRESS))
    assert (finding.code, finding.subject, finding.is_error) == (Code.NO_ANSWER, ADDRESS, True)
    silent = only(entry(), other, unreachable={ADDRESS: "timed out"}, ready_hosts=hosts)
    assert silent.code is Code.NOT_FROM_HERE, "a network policy may let this machine in to the one and not to the other"
    away = findings(entry(), other, ready_hosts=hosts, **refused(ADDRESS, "10.0.0.8:9000"))
    assert {each.code for each in away} == {Code.NOT_FROM_HERE}, "this machine reaches no Pod at all"


@pytest.mark.parametrize(
    ("version", "outdated"),
    [
        *(("3.4.30", True), ("3.5.32", True), ("3.5.33", False), ("3.6.13", True), ("3.6.14", False), ("3.7.0", False)),
        *(("3.6.14-rc.0", False), ("", False), ("not-a-version", False)),
    ],
)
def test_outdated_releases_of_etcd(version: str, outdated: bool) -> None:  # noqa: FBT001 - the table's second column
    assert is_outdated(version) is outdated


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "169.254.1.1", "224.0.0.1", "localhost", "LOCALHOST."],
)
def test_hosts_that_nobody_else_can_dial(host: str) -> None:
    assert unroutable(host)


@pytest.mark.parametrize("host", ["10.0.0.7", "2001:db8::5", "greeter.shop", "203.0.113.1"])
def test_hosts_that_others_may_dial(host: str) -> None:
    assert unroutable(host) is None


def test_names_that_people_mix_up_are_alike() -> None:
    assert fold("Shop-Greeter") == fold("shop.greeter") == fold(" shop_greeter")
    assert fold("greeter") != fold("greeters")


def test_a_ca_with_comments_that_are_not_ascii_explains_what_does_not_answer(tmp_path: Path) -> None:
    pem = Authority(tmp_path).ca.read_text()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            for _ in range(2):
                listener.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        settings = ClientSettings(endpoints=endpoint, ca=f"{pem}# Autorit\u00e9\n{pem}")
        found = list(explain_failure(settings, Unavailable("it does not answer", "UNAVAILABLE")))
    assert [each.remedy for each in found] == [NEEDS_NO_TLS]
