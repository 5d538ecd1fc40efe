"""Gather the facts that `diagnosis` judges: from etcd, from its endpoints, and by knocking at registered addresses."""

import contextlib
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from grpc_etcd.cli.diagnosis import Facts, Finding, Level
from grpc_etcd.cli.entries import list_root, make_entries, service_of
from grpc_etcd.cli.reading import read_all, read_owners, read_service
from grpc_etcd.etcd import AuthFailed, DeadlineExceeded, Etcd, EtcdError, PermissionDenied, Unavailable
from grpc_etcd.registry.endpoint import Endpoint, split_address
from grpc_etcd.registry.layout import Layout
from grpc_etcd.registry.layouts import LAYOUT_NAMES, make_layout
from grpc_etcd.registry.own import OWNER_PREFIX, SYNCED_PREFIX
from grpc_etcd.settings import ClientSettings

KNOCK_SECONDS = 1.0
KNOCKERS = 32
# Jupiter's own default, and the one that its documentation and its admin tool use.
KNOWN_PREFIXES = ("jupiter", "wsd-reg")


def gather_facts(etcd: Etcd, layouts: Sequence[Layout], service: str | None) -> Facts:
    """Read the registry and knock at its addresses; raises EtcdError when it cannot be read."""
    status = etcd.status()
    scopes = tuple(each.prefix(service) if service else list_root(each) for each in layouts)
    entries = read_service(etcd, layouts, service) if service else read_all(etcd, layouts)
    owners = read_owners(etcd)
    return Facts(
        service=service,
        sought=tuple(f"{each.name} {scope.decode()!r}" for each, scope in zip(layouts, scopes, strict=True)),
        entries=tuple(entries),
        elsewhere={} if entries else _look_elsewhere(etcd, layouts, service),
        similar=() if entries or not service else _similar(etcd, layouts, service),
        unreachable=knock({entry.read.address for entry in entries if isinstance(entry.read, Endpoint)}),
        has_owners=bool(owners),
        missing_keys=_missing(etcd, scopes, owners),
        synced=_read_synced(etcd),
        version=status.version,
        alarms=status.errors,
    )


def _missing(etcd: Etcd, scopes: tuple[bytes, ...], owned: Iterable[bytes]) -> tuple[str, ...]:
    """Name the keys that owner records speak of and that are not there."""
    present = {record.key for scope in scopes for record in etcd.get_prefix(scope, keys_only=True).records}
    return tuple(key.decode() for key in sorted(owned) if key.startswith(scopes) and key not in present)


def _look_elsewhere(etcd: Etcd, layouts: Sequence[Layout], service: str | None) -> dict[str, int]:
    """Find the options that would have found something: other layouts, and other prefixes of Jupiter's."""
    tried = {(each.name, list_root(each)) for each in layouts}
    found = {}
    candidates = [(f"--layout {name}", make_layout(name)) for name in LAYOUT_NAMES]
    candidates += [
        (f"--prefix {prefix}", make_layout("jupiter", prefix)) for prefix in (*KNOWN_PREFIXES, *_roots(etcd))
    ]
    for options, layout in candidates:
        if (layout.name, list_root(layout)) in tried or (not service and not list_root(layout)):
            continue
        tried.add((layout.name, list_root(layout)))
        with contextlib.suppress(PermissionDenied):
            records = etcd.get_prefix(layout.prefix(service) if service else list_root(layout)).records
            entries = [each for each in make_entries(layout, records) if isinstance(each.read, Endpoint)]
            if entries:
                found[options] = len(entries)
    return found


def _roots(etcd: Etcd) -> list[str]:
    """Find the first segments of keys that look like Jupiter's, if this user may see all keys."""
    try:
        keys = [record.key for record in etcd.get_prefix(b"/", keys_only=True).records]
    except PermissionDenied:
        return []
    return sorted({key.split(b"/")[1].decode(errors="replace") for key in keys if b"/providers/" in key})


def _similar(etcd: Etcd, layouts: Sequence[Layout], service: str) -> tuple[str, ...]:
    names = set()
    for layout in layouts:
        with contextlib.suppress(PermissionDenied):
            keys = [record.key for record in etcd.get_prefix(list_root(layout), keys_only=True).records]
            names |= {service_of(layout, key) for key in keys}
    return tuple(sorted(name for name in names if name and name != service and fold(name) == fold(service)))


def fold(name: str) -> str:
    """Reduce a name to what people mix up: case, white space, dashes, underscores, dots."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _read_synced(etcd: Etcd) -> tuple[str, ...] | None:
    try:
        etcd.get_prefix(OWNER_PREFIX, keys_only=True)
        records = etcd.get_prefix(SYNCED_PREFIX).records
    except PermissionDenied:
        return None
    return tuple(record.key[len(SYNCED_PREFIX) :].decode() for record in records)


def knock(addresses: set[str]) -> dict[str, str]:
    """Try to connect to each address; give those where nothing answers, with the reason."""
    with ThreadPoolExecutor(KNOCKERS) as pool:
        answers = zip(addresses, pool.map(_knock, addresses), strict=True)
    return {address: reason for address, reason in answers if reason}


def _knock(address: str) -> str | None:
    parts = split_address(address)
    if parts is None:
        return "it is not host:port"
    try:
        socket.create_connection(parts, KNOCK_SECONDS).close()
    except OSError as error:
        return str(error.strerror or error)
    return None


def explain_failure(settings: ClientSettings, error: EtcdError) -> Iterator[Finding]:
    """Say why etcd cannot be read with these settings."""
    if isinstance(error, AuthFailed | PermissionDenied) or not isinstance(error, Unavailable | DeadlineExceeded):
        yield Finding(Level.FAULT, "etcd", str(error), error.remedy)
        return
    for endpoint in settings.endpoints.split(","):
        problem, remedy = _explain_endpoint(endpoint.strip(), settings, error)
        yield Finding(Level.FAULT, endpoint.strip(), problem, remedy)


def _explain_endpoint(endpoint: str, settings: ClientSettings, error: EtcdError) -> tuple[str, str]:
    parts = split_address(endpoint.rpartition("://")[2].strip("/"))
    if parts is None:
        return "it is not host:port", "Give endpoints as etcd:2379, separated by commas."
    uses_tls = bool(settings.ca or settings.cert) or endpoint.startswith("https")
    try:
        socket.create_connection(parts, KNOCK_SECONDS).close()
    except OSError as failure:
        return f"nobody answers there: {failure.strerror or failure}", error.remedy
    speaks, complaint = _try_tls(parts, settings.ca if uses_tls else "")
    if speaks and not uses_tls:
        return "the server speaks TLS, the client does not", "Give --ca (and --cert, --key where clients need one)."
    if uses_tls and complaint:
        return f"TLS fails: {complaint}", "Check --ca, and that the server's certificate names this host and is valid."
    if uses_tls and not speaks:
        return (
            "the client speaks TLS, the server does not",
            "Leave out --ca, --cert, --key, and write http:// or no scheme.",
        )
    return f"something answers there, but not as etcd does: {error}", error.remedy


def _try_tls(address: tuple[str, int], ca: str) -> tuple[bool, str]:
    """Shake hands; say whether TLS is spoken at all, and what is wrong with the certificate."""
    context = ssl.create_default_context(cafile=ca or None)
    if not ca:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(address, KNOCK_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=address[0]),
        ):
            return True, ""
    except ssl.SSLCertVerificationError as failure:
        return True, failure.verify_message
    except OSError:
        return False, ""
