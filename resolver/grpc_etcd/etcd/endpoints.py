"""Where etcd is and how to get in: endpoints, TLS files, user and password; and the channel's options. No sockets here.

One name becomes `dns:///`, which gRPC resolves again by itself. Several endpoints must become addresses first, since
gRPC knows no target of several names; round robin over them prefers those that are connected.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple, TypeAlias

DEFAULT_PORT = 2379

Password: TypeAlias = str | Path | Callable[[], str]

# Measured on grpcio 1.85: the keep-alive timeout alone is not obeyed, `ping_timeout_ms` is; pings closer than 10 s make
# etcd (minimum 5 s, with its own tolerance) say goodbye with `too_many_pings`.
OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),  # else the third ping of a quiet watch waits for a minute
    ("grpc.max_receive_message_length", -1),  # one revision's events come in one message, however many they are
    ("grpc.max_send_message_length", -1),  # the server's own limit answers with a better error
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 3_000),  # in fact the time that one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 3_000),
    ("grpc.use_local_subchannel_pool", 1),  # equal channels would share a connection, and a dead one too
    ("grpc.enable_http_proxy", 0),  # the registry is never behind the proxy that leads out
)


class HostPort(NamedTuple):
    """One endpoint: a name or an address, and a port."""

    host: str
    port: int

    @property
    def is_address(self) -> bool:
        """Whether no name has to be resolved."""
        return is_address(self.host)


@dataclass(frozen=True, slots=True)
class Tls:
    """The files of TLS: the CA, and for mutual TLS a certificate and its key. Changed files are picked up.

    Without a CA, the system's certificates are trusted. `server_name` is the name that the servers' certificates must
    carry where it is not the endpoint's own; with several endpoints it is needed unless all carry the first one's name.
    """

    ca: Path | str | None = None
    cert: Path | str | None = None
    key: Path | str | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise ValueError("mutual TLS needs both a certificate and its key")


def is_address(host: str) -> bool:
    """Whether this is an IP address and not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def parse_endpoints(endpoints: str | Sequence[str]) -> tuple[HostPort, ...] | str:
    """Return the endpoints of a list or a comma-separated string; a gRPC target (`dns:///etcd`) stays what it is.

    Each is `host`, `host:port` or `[v6]:port`, with or without `http://` or `https://` as etcdctl writes them.
    """
    listed = endpoints.split(",") if isinstance(endpoints, str) else list(endpoints)
    stripped = [each.strip() for each in listed if each.strip()]
    if not stripped:
        raise ValueError("no etcd endpoint given")
    if len(stripped) == 1 and is_target(stripped[0]):
        return stripped[0]
    return tuple(dict.fromkeys(parse_endpoint(each) for each in stripped))


def is_target(endpoint: str) -> bool:
    """Whether this is a gRPC target already."""
    return endpoint.startswith(("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:"))


def parse_endpoint(endpoint: str) -> HostPort:
    """Return one endpoint's host and port."""
    bare = endpoint.removeprefix("https://").removeprefix("http://").rstrip("/")
    if is_address(bare):
        return HostPort(bare, DEFAULT_PORT)
    host, colon, port = bare.rpartition(":") if not bare.endswith("]") else (bare, "", "")
    host = (host if colon else bare).removeprefix("[").removesuffix("]")
    if not host or "/" in host or (colon and not (port.isdecimal() and 0 < int(port) < 1 << 16)):
        raise ValueError(f"{endpoint!r} is no etcd endpoint: host:port is expected")
    return HostPort(host, int(port) if colon else DEFAULT_PORT)


def wants_tls(endpoints: str | Sequence[str]) -> bool:
    """Whether an endpoint says https."""
    listed = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    return any(each.strip().startswith("https://") for each in listed)


def make_target(addresses: Sequence[HostPort]) -> str:
    """Return the gRPC target of one name or of several addresses."""
    if len(addresses) == 1 and not addresses[0].is_address:
        return f"dns:///{addresses[0].host}:{addresses[0].port}"
    parsed = [(ip_address(each.host), each.port) for each in addresses]
    if all(address.version == 4 for address, _ in parsed):  # noqa: PLR2004  IPv4
        return "ipv4:" + ",".join(f"{address}:{port}" for address, port in parsed)
    mapped = [(address if isinstance(address, IPv6Address) else f"::ffff:{address}", port) for address, port in parsed]
    return "ipv6:" + ",".join(f"[{address}]:{port}" for address, port in mapped)


def make_options(endpoints: tuple[HostPort, ...] | str, tls: Tls | None) -> tuple[tuple[str, int | str], ...]:
    """Return the channel's options."""
    several = not isinstance(endpoints, str) and len(endpoints) > 1
    name = (tls.server_name or (endpoints[0].host if several else "")) if tls else ""  # type: ignore[union-attr]
    balancing = (("grpc.lb_policy_name", "round_robin"),)
    return OPTIONS + balancing + ((("grpc.ssl_target_name_override", name),) if name else ())
