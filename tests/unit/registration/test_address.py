"""Which address a process publishes for the one it listens on."""

import pytest

from grpc_etcd.registration.address import Machine, advertised_address, listening_address, probe_machine
from grpc_etcd.registry.layout import Rejected

MACHINE = Machine(ipv4="10.1.2.3", ipv6="2001:db8::7")


@pytest.mark.parametrize(
    ("listening", "machine", "published"),
    [
        ("10.0.0.1:9000", MACHINE, "10.0.0.1:9000"),
        ("[2001:db8::5]:9000", MACHINE, "[2001:db8::5]:9000"),
        ("greeter.shop.svc:9000", MACHINE, "greeter.shop.svc:9000"),
        ("0.0.0.0:9000", MACHINE, "10.1.2.3:9000"),
        ("[::]:9000", MACHINE, "10.1.2.3:9000"),
        ("[::]:9000", Machine(ipv6="2001:db8::7"), "[2001:db8::7]:9000"),
        ("0.0.0.0:9000", Machine(pod_ip="10.9.9.9", ipv4="10.1.2.3"), "10.9.9.9:9000"),
        ("[::]:9000", Machine(pod_ip="fd00::9", ipv4="10.1.2.3"), "[fd00::9]:9000"),
        ("0.0.0.0:9000", Machine(pod_ip="fd00::9", ipv4="10.1.2.3"), "10.1.2.3:9000"),
        ("[::ffff:10.0.0.1]:9000", MACHINE, "[::ffff:10.0.0.1]:9000"),
    ],
)
def test_a_wildcard_becomes_an_address_that_others_can_dial(listening: str, machine: Machine, published: str) -> None:
    assert advertised_address(listening, machine) == published


@pytest.mark.parametrize(
    ("listening", "complaint"),
    [
        ("127.0.0.1:9000", "loopback"),
        ("127.8.8.8:9000", "loopback"),
        ("[::1]:9000", "loopback"),
        ("[::ffff:127.0.0.1]:9000", "loopback"),
        ("localhost:9000", "loopback"),
        ("LOCALHOST.:9000", "loopback"),
        ("169.254.1.1:9000", "link-local"),
        ("[fe80::1]:9000", "link-local"),
        ("224.0.0.1:9000", "multicast"),
        ("10.0.0.1", "host:port"),
        ("10.0.0.1:0", "host:port"),
        ("10.0.0.1:65536", "host:port"),
        ("2001:db8::1:9000", "host:port"),
    ],
)
def test_what_others_cannot_dial_is_refused_with_a_reason(listening: str, complaint: str) -> None:
    answer = advertised_address(listening, MACHINE)
    assert isinstance(answer, Rejected)
    assert complaint in answer.reason


def test_a_wildcard_without_any_routable_address_says_what_to_set() -> None:
    answer = advertised_address("0.0.0.0:9000", Machine(ipv4="127.0.0.1"))
    assert isinstance(answer, Rejected)
    assert "POD_IP" in answer.reason


def test_asked_for_anything_that_parses_is_published_as_it_is() -> None:
    assert advertised_address("127.0.0.1:9000", MACHINE, allow_unroutable=True) == "127.0.0.1:9000"
    assert isinstance(advertised_address("127.0.0.1", MACHINE, allow_unroutable=True), Rejected)


def test_the_machine_answers_without_raising() -> None:
    machine = probe_machine("10.0.0.7")
    assert machine.pod_ip == "10.0.0.7"
    assert "0.0.0.0" not in (machine.ipv4, machine.ipv6)


@pytest.mark.parametrize(
    ("address", "port", "registered"),
    [
        ("0.0.0.0:0", 5000, "0.0.0.0:5000"),
        ("[::]:50051", 50051, "[::]:50051"),
        ("example.org:http", 80, "example.org:80"),
        ("0.0.0.0", 443, "0.0.0.0:443"),
        ("[::1]", 443, "[::1]:443"),
    ],
)
def test_what_a_server_listens_on_is_an_address_with_the_port_that_it_got(
    address: str, port: int, registered: str
) -> None:
    assert listening_address(address, port) == registered


@pytest.mark.parametrize("address", ["unix:server.sock", "unix:8080", "unix:///run/x", "unix-abstract:x", "vsock:2:1"])
def test_sockets_of_one_machine_are_no_address(address: str) -> None:
    rejected = listening_address(address, 1)
    assert isinstance(rejected, Rejected)
    assert "other machines cannot dial" in rejected.reason
