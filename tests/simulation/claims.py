"""Whose names and prefixes are whose, by what the statuses of GrpcServices hold. No product code.

Two claims of different namespaces conflict when one prefix is, contains or lies within the other. None is granted
beside one that is held and conflicts, nor is a key put where another namespace has the claim.
"""

from collections.abc import Iterable, Iterator

from testbed.models.api_server import Object

POLICIES = "/grpc-etcd/policy"


def is_in_conflict(one: str, other: str) -> bool:
    """Say whether two prefixes are one, or one lies within the other."""
    return one.startswith(other) or other.startswith(one)


def held_by(service: Object) -> dict[str, str]:
    """Give the prefixes that a GrpcService holds, each with the time since when."""
    return {each["prefix"]: each["since"] for each in service.get("status", {}).get("claims", ())}


def namespace_of(service: Object) -> str:
    """Give its namespace."""
    return str(service["metadata"]["namespace"])


def _foreign(service: Object, services: Iterable[Object]) -> Iterator[tuple[str, str, str]]:
    """Give what other namespaces hold: prefix, time and namespace."""
    own = namespace_of(service)
    for other in services:
        if namespace_of(other) != own:
            for prefix, since in held_by(other).items():
                yield prefix, since, namespace_of(other)


def is_kept_out(service: Object, services: Iterable[Object]) -> bool:
    """Say whether another namespace holds what a GrpcService in the layout of Jupiter needs, and so keeps it."""
    name = service["spec"].get("name") or service["metadata"]["name"]
    needed, held = (f"/jupiter/{name}/", f"{POLICIES}/jupiter/{name}/"), held_by(service)
    return any(
        is_in_conflict(each, prefix) and held.get(each, "~") > since
        for prefix, since, _ in _foreign(service, services)
        for each in needed
    )


def find_wrong_grants(now: Object, before: Object | None, services: Iterable[Object]) -> Iterator[str]:
    """Say of each claim that has just been granted whether another namespace holds what conflicts with it."""
    new = held_by(now).keys() - (held_by(before).keys() if before else set())
    foreign = list(_foreign(now, services)) if new else []
    for claim in sorted(new):
        for prefix, _, namespace in foreign:
            if is_in_conflict(claim, prefix):
                yield f"{namespace_of(now)} was granted {claim}, and {namespace} holds {prefix}"


def find_owners(key: str, services: Iterable[Object]) -> set[str]:
    """Give the namespaces that hold the place of a key, be it an endpoint's or a policy's."""
    name = f"{key.removeprefix(POLICIES)}/" if key.startswith(POLICIES) else key
    return {namespace_of(each) for each in services if any(name.startswith(prefix) for prefix in held_by(each))}
