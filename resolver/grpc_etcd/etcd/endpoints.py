"""Where etcd is and how to get in: endpoints, TLS files, user and password; and the channel's options. No sockets here.

Each endpoint is a gRPC target of its own, so that its certificate is checked against its own name. A name becomes
`dns:///`, which gRPC resolves again by itself; round robin over its addresses prefers those that are connected.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple, TypeAlias

DEFAULT_PORT = 2379
NO_CREDENTIALS = "an etcd endpoint must not contain a user or password ('@'): they have their own settings"
BOTH_SCHEMES = "some of etcd's endpoints begin with https:// and others with http://, but TLS is used for all or none"
_IN_NO_HOST = frozenset("/;? ")

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
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),  # else a name that leads elsewhere is followed after 30 s
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
    """The files for TLS: the CA, and for mutual TLS a certificate and its key. Changed files are read again.

    Each may also be the PEM text itself, which begins with `-----BEGIN`. Without a CA, the public CAs that come with
    grpcio are trusted, or those in the file that the environment variable GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names. The
    certificate of each server must contain the name or address of its endpoint, or `server_name` if that is set.
    """

    ca: Path | str | None = None
    cert: Path | str | None = None
    key: Path | str | None = field(default=None, repr=False)  # may be the private key itself
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


def make_targets(endpoints: str | Sequence[str]) -> tuple[str, ...]:
    """Return the gRPC target of each endpoint of a list or a comma-separated string.

    Each is `host`, `host:port` or `[v6]:port`, with or without `http://` or `https://` as etcdctl writes them; what is
    a gRPC target already (`dns:///etcd`, `ipv4:10.0.0.1:2379,10.0.0.2:2379`) stays what it is.
    """
    listed = split(endpoints) if isinstance(endpoints, str) else endpoints
    stripped = [each.strip() for each in listed if each.strip()]
    if not stripped:
        raise ValueError("no etcd endpoint given")
    if wants_tls(stripped) and any(each.startswith("http://") for each in stripped):
        raise ValueError(BOTH_SCHEMES)
    return tuple(dict.fromkeys(each if is_target(each) else make_target(parse_endpoint(each)) for each in stripped))


def split(endpoints: str) -> list[str]:
    """Split at commas, but not between the addresses of one gRPC target."""
    parts: list[str] = []
    for part in endpoints.split(","):
        if parts and parts[-1].startswith(("ipv4:", "ipv6:")) and not is_target(part.strip()):
            parts[-1] += f",{part.strip()}"
        else:
            parts.append(part.strip())
    return parts


def is_target(endpoint: str) -> bool:
    """Whether this is a gRPC target already."""
    return endpoint.startswith(("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:"))


def parse_endpoint(endpoint: str) -> HostPort:
    """Return one endpoint's host and port."""
    if "@" in endpoint:
        raise ValueError(NO_CREDENTIALS)  # without the endpoint: it would be logged with the password
    bare = endpoint.removeprefix("https://").removeprefix("http://").rstrip("/")
    if is_address(bare):
        return HostPort(bare, DEFAULT_PORT)
    host, colon, port = bare.rpartition(":") if not bare.endswith("]") else (bare, "", "")
    host = (host if colon else bare).removeprefix("[").removesuffix("]")
    if not host or _IN_NO_HOST & {*host} or (colon and not (port.isdecimal() and 0 < int(port) < 1 << 16)):
        raise ValueError(f"{endpoint!r} is not an etcd endpoint: host:port is expected")
    return HostPort(host, int(port) if colon else DEFAULT_PORT)


def wants_tls(endpoints: str | Sequence[str]) -> bool:
    """Whether an endpoint says https."""
    listed = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    return any(each.strip().startswith("https://") for each in listed)


def make_target(endpoint: HostPort) -> str:
    """Return the gRPC target of a name or an address."""
    if not endpoint.is_address:
        return f"dns:///{endpoint.host}:{endpoint.port}"
    address = ip_address(endpoint.host)
    host = f"[{address}]" if isinstance(address, IPv6Address) else address
    return f"ipv{address.version}:{host}:{endpoint.port}"


def make_options(tls: Tls | None, target: str = "") -> tuple[tuple[str, int | str], ...]:
    """Return the options of every channel, and the name by which the server of this target is known.

    A name that ends with a dot is looked up as it is, in no search domain; certificates have it without the dot, and
    servers written in Go refuse a connection that names them with one.
    """
    balancing = (("grpc.lb_policy_name", "round_robin"),)
    name = (tls.server_name or _name_without_dot(target)) if tls else ""
    return OPTIONS + balancing + ((("grpc.ssl_target_name_override", name),) if name else ())


def _name_without_dot(target: str) -> str:
    """Return the host of a target whose name ends with a dot, without it; empty where there is no such dot."""
    scheme, _, rest = target.partition(":")
    host = rest.rpartition("/")[2].partition(":")[0]
    return host.rstrip(".") if scheme == "dns" and host.endswith(".") else ""
