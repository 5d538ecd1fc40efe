"""What a channel's target means: a service of a registry, or an address that is gRPC's own affair. Pure.

    greeter, etcd:///greeter             a service
    localhost:50051, dns:///host:50051   for `grpc.insecure_channel`, as anything that has a scheme of gRPC's
    etcd:///greeter?zone=a, http://host  refused with a sentence

Everywhere that a service is named, `etcd:///name` means the same as the name.
"""

from urllib.parse import unquote, urlsplit

from grpc_etcd.registry.endpoint import name_fault

_SCHEME = "etcd"
# What gRPC core resolves itself (doc/naming.md of grpc/grpc), and `xds`, which needs a bootstrap of one's own.
_GRPC_SCHEMES = ("dns", "unix", "unix-abstract", "vsock", "ipv4", "ipv6", "xds", "google-c2p")


def is_address(target: str) -> bool:
    """Return whether a target is for gRPC itself and not for a registry."""
    scheme, colon, _ = target.partition(":")
    port = target.rpartition(":")[2]
    return bool(colon) and (scheme in _GRPC_SCHEMES or ("/" not in target and port.isdecimal()))


def service_name(target: str) -> str:
    """Return the service that a name or `etcd:///name` means; ValueError says why it can be none."""
    if not isinstance(target, str):
        raise TypeError(f"{target!r} is not the name of a service, which is a string")
    name = _name_in(target) if "://" in target or target.startswith(f"{_SCHEME}:") else target
    if is_address(name):
        raise ValueError(
            f"{target!r} is an address, and a registry finds services by name: use grpc_etcd.insecure_channel({name!r})"
            f" or grpc.insecure_channel, or map a name to it: StaticRegistry({{'greeter': 'localhost:50051'}})"
            " or GRPC_ETCD_STATIC='greeter=localhost:50051'"
        )
    if fault := name_fault(name):
        raise ValueError(fault)
    return name


def _name_in(target: str) -> str:
    parts = urlsplit(target)
    if is_address(target):
        return target
    if parts.scheme != _SCHEME:
        raise ValueError(
            f"the target {target!r} has the scheme {parts.scheme!r}, which neither this library nor gRPC knows:"
            " a service is etcd:///name, an address host:port or dns:///host:port"
        )
    if parts.netloc or not target.startswith(f"{_SCHEME}:///"):
        raise ValueError(f"the target {target!r} is not of the form etcd:///name, with three slashes and no host")
    if parts.query or parts.fragment or target.endswith(("?", "#")):
        raise ValueError(
            f"the target {target!r} has something after the name, which is not supported: pass a policy to"
            " configure(), and write '?' or '#' in a name as %3F or %23"
        )
    return unquote(parts.path.removeprefix("/"))
