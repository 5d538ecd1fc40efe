"""The options of a registry that say where etcd is and how to get in: checked where they are given. No I/O."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpc_etcd.etcd.endpoints import Password, Tls, make_targets, split
from grpc_etcd.options import check_type
from grpc_etcd.registry.endpoint import name_fault
from grpc_etcd.settings import PREFIX, ClientSettings


def choose_password(options: Mapping[str, Any]) -> Password:
    """Return how the password is found out at each login."""
    password = Path(file) if (file := options.get("password_file")) else options.get("password", "")
    if not isinstance(password, str | Path) and not callable(password):
        raise TypeError("password: it must be a string, a Path, or a callable that returns a string")
    return password


def choose_tls(options: Mapping[str, Any]) -> Tls | None:
    """Return what TLS to etcd needs: `tls`, or what ca, cert, key and server_name say."""
    tls = options.get("tls")
    single = {name: options[name] for name in ("ca", "cert", "key", "server_name") if options.get(name)}
    if tls is None:
        return Tls(**single) if single else None
    if not isinstance(tls, Tls):
        raise TypeError(f"tls: {tls!r} is not grpc_etcd.Tls(ca=..., cert=..., key=...); Tls() trusts the public CAs")
    if single:
        raise ValueError(f"tls={tls!r} excludes {', '.join(single)}: use only one of the two forms")
    return tls


def check_endpoints(etcd: str | Sequence[str]) -> None:
    """Refuse addresses of etcd that cannot be any."""
    if faults := endpoints_faults(etcd):
        raise ValueError("; ".join(faults))


def endpoints_faults(etcd: str | Sequence[str]) -> list[str]:
    """Return which addresses of etcd cannot be one, or why they cannot go together."""
    if not isinstance(etcd, str | Sequence):
        raise TypeError(f"{etcd!r} is neither etcd's endpoints, such as 'etcd:2379', nor a sequence of them")
    listed = split(etcd) if isinstance(etcd, str) else etcd
    for each in listed:
        check_type("etcd's endpoints", each, str, "a string such as 'etcd:2379'")
    single = [fault for each in listed if each.strip() for fault in _fault((each,))]
    return single or _fault(listed)


def _fault(endpoints: Sequence[str]) -> list[str]:
    try:
        make_targets(endpoints)
    except ValueError as error:
        return [str(error)]
    return []


def settings_faults(chosen: ClientSettings) -> Iterator[str]:
    """Return what is wrong with settings that read well."""
    for fault in endpoints_faults(chosen.endpoints) if chosen.endpoints else ():
        yield f"{PREFIX}ENDPOINTS: {fault}"
    if chosen.name and (wrong := name_fault(chosen.name)):
        yield f"{PREFIX}NAME: {wrong}"
