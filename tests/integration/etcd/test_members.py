"""Several members: each checked by its own name, one asked at a time, and another one as soon as it fails."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from grpc_etcd.etcd import Disconnected, Etcd, EtcdError, NotServing, Tls, Unavailable
from testbed.build import binary
from testbed.conditions import existing, free_port, wait_until
from testbed.etcd import EtcdServer
from testbed.process import Process
from testbed.proxy import TcpProxy

from .conftest import Client, Opened, wait_renewed

CALL_SECONDS = 2.0
TTL_SECONDS = 30
AWAY_SECONDS = 5.0
END_SECONDS = 0.5


def works(client: Client) -> bool:
    try:
        client.put(b"k/still", b"")
    except EtcdError:
        return False
    return True


@pytest.fixture
def named() -> Iterator[EtcdServer]:
    """Three members, each with a certificate for its own name alone."""
    with EtcdServer.start(tls=True, own_names=True) as server:
        yield server


@pytest.mark.faults
def test_members_with_certificates_of_their_own_names_replace_one_another(named: EtcdServer, opened: Opened) -> None:
    client = opened(named.endpoints, tls=Tls(ca=existing(named.authority).ca), timeout_seconds=CALL_SECONDS)
    single, ranged = client.follow(b"k/"), client.hub().follow(b"k/")
    for follower in (single, ranged):
        follower.wait_listed()
    for number, member in enumerate(named.members):
        member.kill()
        wait_until(lambda: works(client), "another member answers", 60)
        client.put(b"k/%d" % number, b"")
        for follower in (single, ranged):
            follower.wait(lambda f=follower, n=number: b"k/%d" % n in f.view(), f"the key of round {number}")
        member.restart()


def test_a_member_that_refuses_connections_costs_no_call(etcd_cluster: EtcdServer, opened: Opened) -> None:
    gone = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"]
    client = opened([*gone, etcd_cluster.members[0].endpoint])
    client.put(b"k", b"v")  # the very first call, and it does not fail
    follower = client.hub().follow(b"k")
    follower.wait_listed()
    client.put(b"k2", b"")
    follower.wait_events(1)


def test_a_member_of_another_name_than_its_certificate_is_passed_over(named: EtcdServer, opened: Opened) -> None:
    wrong = named.members[0].endpoint.replace("localhost", "127.0.0.1")  # its certificate says localhost only
    tls = Tls(ca=existing(named.authority).ca)
    with pytest.raises(Unavailable, match=r"Hostname Verification Check failed|Peer name"):
        opened(wrong, tls=tls).get(b"k")
    client = opened([wrong, named.members[1].endpoint], tls=tls)
    client.put(b"k", b"v")
    assert existing(client.get(b"k")).value == b"v"


def test_one_name_for_all_members_can_be_set(named: EtcdServer, opened: Opened) -> None:
    port = named.members[0].endpoint.partition(":")[2]
    client = opened(f"127.0.0.1:{port}", tls=Tls(ca=existing(named.authority).ca, server_name="localhost"))
    client.put(b"k", b"v")
    assert existing(client.get(b"k")).value == b"v"


@pytest.mark.faults
def test_a_frozen_member_costs_one_call_and_its_streams_move(etcd_cluster: EtcdServer, opened: Opened) -> None:
    let_lead(etcd_cluster, 1)  # whom nobody freezes, so that there is no election to wait for
    client = opened(etcd_cluster.endpoints, timeout_seconds=CALL_SECONDS)
    hub = client.hub()
    follower, single = hub.follow(b"k/"), client.follow(b"k/")
    follower.wait_listed()
    single.wait_listed()
    lost: list[int] = []
    keeper = client.keep_alive(lost.append)
    lease = client.lease(TTL_SECONDS)
    keeper.add(lease, TTL_SECONDS, remaining_seconds=0)
    client.put(b"k/leased", b"", lease=lease)
    etcd_cluster.members[0].pause()  # the one that all use: the first
    failed = 0
    try:
        while not works(client):
            failed += 1
        follower.wait(lambda: b"k/still" in follower.view(), "the hub's stream moves", 60)
        single.wait(lambda: b"k/still" in single.view(), "the other stream moves", 60)
        wait_renewed(client, lease)
    finally:
        etcd_cluster.members[0].resume()
    assert not lost
    keeper.close()
    assert failed <= 3  # one for the member; a busy machine may make it more


def let_lead(cluster: EtcdServer, number: int) -> None:
    """Make one member the leader."""
    with Etcd(cluster.members[number].endpoint) as client:
        status = client.status()
    if status.leader_id != status.member_id:
        cluster.etcdctl("move-leader", f"{status.member_id:x}")


@pytest.mark.faults
def test_a_stream_that_is_frozen_alone_moves_to_another_member(
    etcd_cluster: EtcdServer, opened: Opened, closing: contextlib.ExitStack
) -> None:
    proxy = closing.enter_context(TcpProxy.start(etcd_cluster.members[0].endpoint))
    client = opened([proxy.address, etcd_cluster.members[1].endpoint], timeout_seconds=CALL_SECONDS)
    follower = client.hub(progress_seconds=1.0).follow(b"k/")
    follower.wait_listed()
    wait_until(lambda: follower.state.connected, "connected")
    proxy.black_hole()
    wait_until(lambda: works(client), "the other member answers", 60)
    follower.wait(lambda: b"k/still" in follower.view(), "the stream moves")
    assert len(follower.of(Disconnected)) >= 1


@pytest.mark.faults
def test_a_stream_that_goes_back_to_a_dead_member_leaves_it_again(
    etcd_cluster: EtcdServer, opened: Opened, closing: contextlib.ExitStack
) -> None:
    """As where all fail for a moment, one for good: what was sent to it is refused before anybody reads."""
    dead, other = (closing.enter_context(TcpProxy.start(member.endpoint)) for member in etcd_cluster.members[:2])
    members = [dead.address, other.address]  # each by a client of its own: one's calls may find what helps all
    followers = [opened(members).follow(b"k/"), opened(members).hub().follow(b"k/")]
    for follower in followers:
        follower.wait_listed()
        follower.wait_connected()
    dead.refuse()
    for follower in followers:
        follower.wait(lambda f=follower: f.of(Disconnected) and f.state.connected, "the other member", 60)
    other.refuse()
    for follower in followers:
        follower.wait(lambda f=follower: not f.state.connected, "both are away")
    end = time.monotonic() + AWAY_SECONDS
    wait_until(lambda: time.monotonic() > end, "each has been tried again")
    other.heal()
    with Etcd(etcd_cluster.endpoints) as writer:
        writer.put(b"k/still", b"")
    for follower in followers:
        follower.wait(lambda f=follower: b"k/still" in f.view(), "the stream moves")


@pytest.mark.faults
def test_a_stream_that_is_ended_on_purpose_is_no_failure_of_its_member(
    etcd_cluster: EtcdServer, opened: Opened, closing: contextlib.ExitStack
) -> None:
    """Calls would go on to the other member, which may be dead, and one would be lost for each such end."""
    dead = closing.enter_context(TcpProxy.start(etcd_cluster.members[1].endpoint))
    dead.black_hole()
    client = opened([etcd_cluster.members[0].endpoint, dead.address], timeout_seconds=CALL_SECONDS)
    hub, single, keeper = client.hub(), client.follow(b"k/"), client.keep_alive(print)
    ranged = hub.follow(b"k/")
    for follower in (ranged, single):
        follower.wait_listed()
        follower.wait_connected()
    lease = client.lease(TTL_SECONDS)
    keeper.add(lease, TTL_SECONDS, remaining_seconds=0)
    wait_renewed(client, lease)
    ends: list[Callable[[], None]] = [lambda: hub.unfollow(ranged), lambda: client.unfollow(single), keeper.close]
    for end in ends:
        end()
        over = time.monotonic() + END_SECONDS
        wait_until(lambda over=over: time.monotonic() > over, "whoever reads it has seen the end")
        assert works(client)


@pytest.mark.faults
def test_a_learner_in_the_place_of_a_member_is_passed_over(etcd_cluster: EtcdServer, opened: Opened) -> None:
    """So etcd has a lost member replaced, and a learner serves no clients until it is promoted."""
    etcd_cluster.replace(etcd_cluster.members[0])
    client = opened(etcd_cluster.endpoints)
    client.put(b"k/first", b"")  # the very first call, and it does not fail
    follower, single = client.hub().follow(b"k/"), client.follow(b"k/")
    lost: list[int] = []
    keeper = client.keep_alive(lost.append)
    lease = client.lease(10)
    keeper.add(lease, 10, remaining_seconds=0)
    client.put(b"k/leased", b"", lease=lease)
    for each in (follower, single):
        each.wait(lambda each=each: {b"k/first", b"k/leased"} <= each.view().keys(), "it is followed")
    wait_until(lambda: existing(client.time_to_live(lease)).remaining_seconds >= 8, "the lease is renewed")
    etcd_cluster.promote(etcd_cluster.members[0])
    etcd_cluster.members[1].kill()
    wait_until(lambda: works(client), "the new member has its part", 60)
    assert not lost
    keeper.close()


@pytest.mark.faults
def test_a_learner_behind_the_name_of_all_members_is_left_by_another_connection(
    etcd_cluster: EtcdServer, closing: contextlib.ExitStack, opened: Opened
) -> None:
    etcd_cluster.replace(etcd_cluster.members[0])
    proxy = closing.enter_context(TcpProxy.start(etcd_cluster.members[0].endpoint))
    client = opened(proxy.address)
    with pytest.raises(NotServing):
        client.put(b"k", b"")
    follower = client.hub().follow(b"k")
    wait_until(lambda: isinstance(follower.state.error, NotServing), "the hub is refused too")
    proxy.lead_to(etcd_cluster.members[1].endpoint)
    client.put(b"k", b"v")
    follower.wait(lambda: follower.view() == {b"k": b"v"}, "it is followed")


class NameServer:
    """A DNS server for one name, whose address can change."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(512)
            if not query:
                return
            self._socket.sendto(self._answer(query), sender)

    def _answer(self, query: bytes) -> bytes:
        end = query.index(b"\x00", 12) + 5
        is_ipv4 = query[end - 4 : end - 2] == b"\x00\x01"
        head = query[:2] + b"\x85\x80" + struct.pack("!HHHH", 1, int(is_ipv4), 0, 0)
        record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + socket.inet_aton(self.address)
        return head + query[12:end] + (record if is_ipv4 else b"")


@pytest.mark.faults
def test_a_name_that_changes_its_address_is_followed_soon(
    own_etcd: EtcdServer, opened: Opened, closing: contextlib.ExitStack
) -> None:
    port = own_etcd.members[0].endpoint.partition(":")[2]
    names = closing.enter_context(NameServer("127.0.0.9"))  # nobody listens there
    client = opened(f"dns://127.0.0.1:{names.port}/etcd.test:{port}", timeout_seconds=CALL_SECONDS)
    assert not works(client)
    names.address = "127.0.0.1"
    wait_until(lambda: works(client), "the name's new address", 25)  # by default gRPC asks again after 30 s


def test_a_name_that_ends_with_a_dot_is_that_of_the_certificate(
    named: EtcdServer, opened: Opened, closing: contextlib.ExitStack
) -> None:
    names = closing.enter_context(NameServer("127.0.0.1"))
    rooted = f"dns://127.0.0.1:{names.port}/{named.members[0].endpoint.replace('localhost', 'localhost.')}"
    tls = Tls(ca=existing(named.authority).ca)
    client = opened(rooted, tls=tls)
    client.put(b"k", b"v")
    assert existing(client.get(b"k")).value == b"v"
    with pytest.raises(Unavailable, match=r"Hostname Verification Check failed|Peer name"):
        opened(rooted, tls=Tls(ca=tls.ca, server_name="other")).get(b"k")


@contextlib.contextmanager
def grpc_proxy(server: EtcdServer) -> Iterator[str]:
    """Start etcd's own proxy in front of it; give its address."""
    address = f"127.0.0.1:{free_port()}"
    ways = f"--endpoints={server.urls}", f"--listen-addr={address}", "--advertise-client-url="
    command = [str(binary("etcd")), "grpc-proxy", "start", *ways]
    with Process("grpc-proxy", command, server.folder / f"{address}.log") as process:
        process.start()
        yield address


def test_an_etcd_grpc_proxy_is_told_and_another_endpoint_is_followed(etcd: EtcdServer, opened: Opened) -> None:
    """It gives watches ids of its own and no answer about progress: each event would be taken for that of nobody."""
    with grpc_proxy(etcd) as address:
        client = opened(address)
        wait_until(lambda: works(client), "it serves")
        ranged, single = client.hub().follow(b"k/"), client.follow(b"j/", b"k/")
        assert "client URLs of etcd's members" in ranged.wait_lost(NotServing).error.remedy
        single.wait_listed()
        client.put(b"k/1", b"")
        client.put(b"j/1", b"")
        single.wait_events(2)
        both = opened([address, *(member.endpoint for member in etcd.members)])
        follower = both.hub().follow(b"k/")
        follower.wait_listed()
        both.put(b"k/2", b"")
        follower.wait(lambda: b"k/2" in follower.view(), "etcd itself is followed")
