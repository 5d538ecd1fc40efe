"""Who may use a registry name: it belongs to the namespace of the oldest GrpcService that uses it.

What is contested is a key prefix in a registry, so one name under two prefixes is two claims. Several GrpcServices of
one namespace share a name on purpose. Age is creation time, then UID: every replica decides alike.
"""

from collections.abc import Iterable
from typing import NamedTuple

from grpc_etcd_operator.core.services import GrpcService


class Claim(NamedTuple):
    """A key prefix in one registry."""

    registry: str
    prefix: bytes


class Taken(NamedTuple):
    """Why a GrpcService may not write: an older one of another namespace holds what it wants."""

    claim: Claim
    holder: str


def claims_of(service: GrpcService) -> tuple[Claim, ...]:
    """List the prefixes that a GrpcService wants to write under."""
    spec = service.spec
    if spec is None:
        return ()
    return tuple(
        Claim(registry, layout.prefix(spec.registry_name))
        for registry in spec.registries
        for layout in spec.layouts[registry]
    )


def find_taken(service: GrpcService, rivals: Iterable[GrpcService]) -> Taken | None:
    """Find the holder of one of `service`'s claims in another namespace: the oldest of all who make that claim."""
    wanted = set(claims_of(service))
    for rival in sorted(rivals, key=lambda other: other.age_order):
        if rival.age_order >= service.age_order:
            break
        shared = wanted.intersection(claims_of(rival))
        if shared and rival.namespace != service.namespace:
            return Taken(min(shared), rival.reference)
        wanted -= shared
    return None
