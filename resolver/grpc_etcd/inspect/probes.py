"""Gather the facts that `checks` judges: from etcd, from its endpoints, and by knocking at registered addresses."""

import contextlib
import difflib
import shlex
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from grpc_etcd.etcd import (
    AuthFailed,
    DeadlineExceeded,
    Etcd,
    EtcdError,
    NoLeader,
    PermissionDenied,
    Unavailable,
    UnreadableFile,
)
from grpc_etcd.etcd.dialing import PEM
from grpc_etcd.etcd.endpoints import is_target, parse_endpoint, split
from grpc_etcd.etcd.errors import UNKNOWN_HOST
from grpc_etcd.inspect.causes import REFUSED
from grpc_etcd.inspect.checks import Facts, number
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.entries import Entry, make_entries
from grpc_etcd.inspect.findings import Finding
from grpc_etcd.inspect.reading import read_all, read_owners, read_service
from grpc_etcd.inspect.remedies import explain
from grpc_etcd.layouts.index import LAYOUT_NAMES, make_layout
from grpc_etcd.registry.catalog import list_root, service_of
from grpc_etcd.registry.endpoint import Endpoint, split_address
from grpc_etcd.registry.escaping import escape_bytes
from grpc_etcd.registry.layout import Layout
from grpc_etcd.registry.own import ROOT, SYNCED_PREFIX
from grpc_etcd.settings import ClientSettings

KNOCK_SECONDS = 1.0
NO_MAJORITY = "etcd has no leader, as where too few of its members run"
# Addresses that are tried at once: from outside of a cluster no Pod answers, and each takes all of that time.
# Arbitrary: 10,000 take 40 s; with 32 at once they took more than five minutes.
KNOCKERS = 256
MOST_NAMES = 3  # arbitrary
# Jupiter's own default, and the one that its documentation and its admin tool use.
KNOWN_PREFIXES = ("jupiter", "wsd-reg")


class Part(NamedTuple):
    """The part of a registry that is one namespace's: names of services, and whose keys may be missing."""

    namespace: str
    services: frozenset[str]


def gather_facts(
    etcd: Etcd,
    layouts: Sequence[Layout],
    service: str | None,
    part: Part | None = None,
    ready_hosts: frozenset[str] = frozenset(),
) -> Facts:
    """Read the registry and knock at its addresses; raises EtcdError when it cannot be read.

    Without a service, a `part` says of which all is judged.
    """
    status = etcd.status()
    scopes = tuple(each.prefix(service) if service else list_root(each) for each in layouts)
    entries = read_service(etcd, layouts, service) if service else _read_part(etcd, layouts, part)
    owners = read_owners(etcd)
    owned = [key for key, owner in (owners or {}).items() if part is None or owner.namespace == part.namespace]
    unreachable = knock({entry.read.address for entry in entries if isinstance(entry.read, Endpoint)})
    others = () if entries or not service else sorted(_names(etcd, layouts) - {service})
    return Facts(
        service=service,
        sought=tuple(f"{each.name} {scope.decode()!r}" for each, scope in zip(layouts, scopes, strict=True)),
        entries=tuple(entries),
        elsewhere={} if entries or part else _look_elsewhere(etcd, layouts, service),
        similar=tuple(name for name in others if service and fold(name) == fold(service)),
        near=tuple(difflib.get_close_matches(service, others, MOST_NAMES)) if service else (),
        unreachable=unreachable,
        refusing=frozenset(address for address, why in unreachable.items() if why == REFUSED),
        has_owners=None if owners is None else bool(owners),
        missing_keys=_missing(etcd, scopes, owned),
        synced=_read_synced(etcd),
        is_part=part is not None,
        ready_hosts=ready_hosts,
        version=status.version,
        alarms=status.errors,
    )


def _read_part(etcd: Etcd, layouts: Sequence[Layout], part: Part | None) -> list[Entry]:
    return [each for each in read_all(etcd, layouts) if part is None or each.service in part.services]


def describe_absence(etcd: Etcd, layouts: Sequence[Layout], service: str | None) -> str:
    """Return where nothing is, and with which options there would be something."""
    scopes = ((each, each.prefix(service) if service else list_root(each)) for each in layouts)
    sought = ", ".join(f"{escape_bytes(scope) or 'any key'} ({layout.name})" for layout, scope in scopes)
    found = _look_elsewhere(etcd, layouts, service)
    others = ", ".join(f"{number(count, 'record')} with {options}" for options, count in found.items())
    return f"nothing is registered under {sought}" + (f", but {others}" if others else "")


def _missing(etcd: Etcd, scopes: tuple[bytes, ...], owned: Iterable[bytes]) -> tuple[str, ...]:
    """Name the keys that owner records speak of and that are not there."""
    present = {record.key for scope in scopes for record in etcd.get_prefix(scope, keys_only=True).records}
    return tuple(escape_bytes(key) for key in sorted(owned) if key.startswith(scopes) and key not in present)


def _look_elsewhere(etcd: Etcd, layouts: Sequence[Layout], service: str | None) -> dict[str, int]:
    """Find the options that would have found something: other layouts, and other prefixes."""
    tried = {(each.name, list_root(each)) for each in layouts}
    found = {}
    for options, layout in _candidates(etcd, layouts):
        if (layout.name, list_root(layout)) in tried or (not service and not list_root(layout)):
            continue
        tried.add((layout.name, list_root(layout)))
        with contextlib.suppress(PermissionDenied):
            records = etcd.get_prefix(layout.prefix(service) if service else list_root(layout)).records
            entries = [each for each in make_entries(layout, records) if isinstance(each.read, Endpoint)]
            if entries:
                found[options] = len(entries)
    return found


def _candidates(etcd: Etcd, layouts: Sequence[Layout]) -> Iterator[tuple[str, Layout]]:
    """Return the options to try, each with what it means.

    All that a layout depends on, so that it can be typed as is.
    """
    given = [prefix for each in layouts if (prefix := getattr(each, "prefix_name", None))]
    for name in LAYOUT_NAMES:
        for prefix in dict.fromkeys((None, *given)):
            layout = make_layout(name, prefix)
            yield describe_options(layout), layout
    for prefix in (*KNOWN_PREFIXES, *_roots(etcd)):
        layout = make_layout("jupiter", prefix)
        yield describe_options(layout), layout


def describe_options(layout: Layout) -> str:
    """Write the options that choose a layout with its prefix, where it has one."""
    prefix = getattr(layout, "prefix_name", None)
    if prefix is None:
        return f"--layout {layout.name}"
    if not prefix:
        return f"--layout {layout.name} and no prefix (no --prefix, no GRPC_ETCD_PREFIX)"
    return f"--layout {layout.name} --prefix {shlex.quote(prefix)}"


def _roots(etcd: Etcd) -> list[str]:
    """Find the prefixes of keys that look like Jupiter's, if this user may see all keys."""
    try:
        keys = [record.key for record in etcd.get_prefix(b"/", keys_only=True).records]
    except PermissionDenied:
        return []
    # /{prefix}/{service}/providers/...; a prefix may hold slashes, a service's name may not.
    heads = {key.partition(b"/providers/")[0].rpartition(b"/")[0] for key in keys if b"/providers/" in key}
    roots = {head.decode(errors="replace").strip("/") for head in heads if not head.startswith(ROOT)}
    return sorted(root for root in roots if root and root.isprintable())


def _names(etcd: Etcd, layouts: Sequence[Layout]) -> set[str]:
    names = set()
    for layout in layouts:
        with contextlib.suppress(PermissionDenied):
            keys = [record.key for record in etcd.get_prefix(list_root(layout), keys_only=True).records]
            names |= {service_of(layout, key) for key in keys}
    return {name for name in names if name}


def fold(name: str) -> str:
    """Reduce a name to what people mix up: case, whitespace, dashes, underscores, dots."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _read_synced(etcd: Etcd) -> tuple[str, ...] | None:
    try:
        records = etcd.get_prefix(SYNCED_PREFIX).records
    except PermissionDenied:
        return None
    return tuple(escape_bytes(record.key[len(SYNCED_PREFIX) :]) for record in records)


def knock(addresses: set[str]) -> dict[str, str]:
    """Try to connect to each address; return those where nothing answers, with the reason."""
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
    except UnicodeError:
        return "the host name is invalid"
    return None


def find_cause(etcd: Etcd, error: EtcdError) -> EtcdError:
    """Return NoLeader in place of a deadline that passed while the member which was asked waited for a leader."""
    return NoLeader(NO_MAJORITY) if isinstance(error, DeadlineExceeded) and _is_without_leader(etcd) else error


def _is_without_leader(etcd: Etcd) -> bool:
    """Return whether a member says so of itself, which it does without a leader."""
    try:
        return not etcd.status().leader_id
    except EtcdError:
        return False


def explain_failure(settings: ClientSettings, error: EtcdError) -> Iterator[Finding]:
    """Return why etcd cannot be read with these settings."""
    if isinstance(error, UnreadableFile) or not isinstance(error, Unavailable | DeadlineExceeded):
        yield Finding(_code(error), "etcd", *explain(error, settings))
        return
    for endpoint in split(settings.endpoints):
        code, problem, remedy = _explain_endpoint(endpoint.strip(), settings, error)
        yield Finding(code, endpoint.strip(), problem, remedy)


def _code(error: EtcdError) -> Code:
    kinds = ((AuthFailed, Code.ETCD_LOGIN), (PermissionDenied, Code.ETCD_DENIED), (UnreadableFile, Code.ETCD_TLS))
    return next((code for kind, code in kinds if isinstance(error, kind)), Code.ETCD_UNREACHABLE)


NEEDS_TLS = "Pass --ca (and --cert and --key if etcd requires client certificates)."
BAD_CERTIFICATE = "Check --ca, and that the server's certificate names this host and is valid."
NEEDS_NO_TLS = "Remove --ca, --cert and --key, and write http:// or no scheme."


def _explain_endpoint(endpoint: str, settings: ClientSettings, error: EtcdError) -> tuple[Code, str, str]:
    parts = None if is_target(endpoint) else parse_endpoint(endpoint)
    if parts is None:
        return (Code.ETCD_UNREACHABLE, *explain(error, settings))
    uses_tls = bool(settings.ca or settings.cert or settings.server_name) or endpoint.startswith("https")
    try:
        socket.create_connection(parts, KNOCK_SECONDS).close()
    except OSError as failure:
        remedy = UNKNOWN_HOST if isinstance(failure, socket.gaierror) else Unavailable.remedy
        return Code.ETCD_UNREACHABLE, f"nothing responds there: {failure.strerror or failure}", remedy
    speaks, complaint = _try_tls(parts, settings.ca if uses_tls else "", settings.server_name or parts[0].rstrip("."))
    if speaks and not uses_tls:
        return Code.ETCD_TLS, "the server speaks TLS, the client does not", NEEDS_TLS
    if uses_tls and complaint:
        return Code.ETCD_TLS, f"TLS fails: {complaint}", BAD_CERTIFICATE
    if uses_tls and not speaks:
        return Code.ETCD_TLS, "the client speaks TLS, the server does not", NEEDS_NO_TLS
    problem = str(error) if isinstance(error, NoLeader) else f"something responds there, but not as etcd does: {error}"
    return Code.ETCD_UNREACHABLE, problem, error.remedy


def _try_tls(address: tuple[str, int], ca: str, name: str) -> tuple[bool, str]:
    """Shake hands; return whether TLS is spoken at all, and what is wrong with the certificate."""
    is_pem = ca.lstrip().startswith(PEM)
    given = {"cadata": ca.encode("ascii", "replace").decode()} if is_pem else {"cafile": ca or None}  # comments too
    try:
        context = ssl.create_default_context(**given)
    except OSError as failure:
        return True, f"the CA certificate cannot be used: {failure}"
    # On since Python 3.13: it refuses CAs that lack extensions for which gRPC, which is to be explained, does not ask.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not ca:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(address, KNOCK_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=name),
        ):
            return True, ""
    except ssl.SSLCertVerificationError as failure:
        return True, failure.verify_message
    except OSError:
        return False, ""
