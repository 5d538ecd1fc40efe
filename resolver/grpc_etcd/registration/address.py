"""Which address a process may put into a registry, and the fact that answers for a wildcard.

Servers listen on 0.0.0.0 or [::], which nobody can dial, and on 127.0.0.1, which everybody dials at home. The commonest
fault of self-registering servers is to publish just that. So a wildcard is replaced by the Pod's address or by the one
that this machine's packets leave from, and what stays unroutable is refused unless the caller asks for it.
"""

import socket
from dataclasses import dataclass

from grpc_etcd.registry.endpoint import IPAddress, join_address, parse_ip, split_address, unroutable
from grpc_etcd.registry.layout import Rejected


@dataclass(frozen=True, slots=True)
class Machine:
    """What is known of the addresses of this machine; an empty string is: there is none."""

    pod_ip: str = ""
    ipv4: str = ""
    ipv6: str = ""


def advertised_address(address: str, machine: Machine, *, allow_unroutable: bool = False) -> str | Rejected:
    """Return the address that clients should dial for a server which listens on `address`."""
    parts = split_address(address)
    if parts is None:
        return Rejected(f"the address {address!r} is not host:port with a port of 1 to 65535 (IPv6 hosts in brackets)")
    host, port = parts
    if allow_unroutable:
        return join_address(host, port)
    ip = parse_ip(host)
    if ip is not None and ip.is_unspecified:
        return _replaced(address, ip, port, machine)
    if reason := unroutable(host):
        return Rejected(
            f"the address {address!r} is {reason}: other machines cannot dial it; "
            "listen on 0.0.0.0 or [::], give a routable address, or pass allow_unroutable=True"
        )
    return join_address(host, port)


_LOCAL_SOCKETS = ("unix:", "unix-abstract:", "vsock:")
NO_PORT = "there is no port to register: call add_insecure_port() or add_secure_port() before start()"


def listening_address(address: str, port: int) -> str | Rejected:
    """Return `host:port` for what a server was asked to listen on, and for the port that it got.

    gRPC also takes a host alone, and unix sockets, which nobody on another machine can dial.
    """
    if address.startswith(_LOCAL_SOCKETS):
        return Rejected(
            f"{address!r} is a socket of this machine, which other machines cannot dial; "
            "also add a port such as '0.0.0.0:50051' before start()"
        )
    for host in (address.rpartition(":")[0], address):
        if split_address(f"{host}:{port}"):
            return f"{host}:{port}"
    return Rejected(f"the server listens on {address!r}, which gives no address to register: give host:port")


def _replaced(address: str, wildcard: IPAddress, port: int, machine: Machine) -> str | Rejected:
    """Choose for a wildcard: the Pod's address first. An IPv6 wildcard listens on IPv4 too, not the other way round."""
    for candidate in (machine.pod_ip, machine.ipv4, machine.ipv6):
        ip = parse_ip(candidate)
        if ip is None or (wildcard.version == 4 and ip.version == 6) or unroutable(candidate):  # noqa: PLR2004 - IP versions
            continue
        return join_address(str(ip), port)
    return Rejected(
        f"the address {address!r} is a wildcard and this machine has no routable address; "
        "set POD_IP (in Kubernetes from status.podIP) or give the address that clients should dial"
    )


def probe_machine(pod_ip: str = "") -> Machine:
    """Ask the kernel which of this machine's addresses its packets leave from; nothing is sent."""
    # Connecting a datagram socket only looks up the route. The targets are documentation addresses (RFC 5737, 3849).
    return Machine(
        pod_ip=pod_ip,
        ipv4=_source_address(socket.AF_INET, "192.0.2.1"),
        ipv6=_source_address(socket.AF_INET6, "2001:db8::1"),
    )


def _source_address(family: socket.AddressFamily, target: str) -> str:
    """Return the local address of the route to `target`; empty without a route."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""
