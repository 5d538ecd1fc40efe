"""What a program may ask for a service: refused by `Registry.configure`, before any channel receives it. Pure.

Routes that come from a registry are not held to this: they are read as they are, and what cannot be used is left out.
"""

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import fields

from grpc_etcd.registry.endpoint import address_fault
from grpc_etcd.registry.policy import Policy
from grpc_etcd.xds.service import MethodRoute

# What is given to `configure` beside the policy that it belongs in.
OF_POLICY = {
    each.name: f"it is a field of Policy: configure(service, Policy({each.name}=...))" for each in fields(Policy)
} | {"timeout": "it is a field of Policy: configure(service, Policy(timeout_seconds=...))"}
_HEAVIEST = 2**32 - 1  # the sum of a route's weights (envoy.config.route.v3.WeightedCluster)


def check_wishes(policy: object, routes: Iterable[object] | None, strict_removal: object) -> None:
    """Raise TypeError or ValueError for what no service can be given; the text names the field."""
    if policy is not None and not isinstance(policy, Policy):
        raise TypeError(f"policy: {policy!r} is not a Policy(...)")
    if strict_removal is not None and not isinstance(strict_removal, bool):
        raise TypeError(f"strict_removal: {strict_removal!r} is neither True nor False")
    for route in routes or ():
        if not isinstance(route, MethodRoute):
            raise TypeError(f"routes: {route!r} is not a MethodRoute(...)")
        _check_route(route)


def read_wait(timeout_seconds: object) -> float | None:
    """Return how long to wait, None forever; raise TypeError or ValueError for what is not a time."""
    if timeout_seconds is None:
        return None
    if isinstance(timeout_seconds, bool) or not isinstance(timeout_seconds, int | float):
        raise TypeError(f"timeout_seconds: {timeout_seconds!r} is not a number of seconds or None (no timeout)")
    if math.isnan(timeout_seconds):
        raise ValueError("timeout_seconds: nan is not a number of seconds")
    return None if timeout_seconds > threading.TIMEOUT_MAX else timeout_seconds


def check_least(at_least: object) -> None:
    """Raise TypeError for what is not a number of endpoints."""
    if isinstance(at_least, bool) or not isinstance(at_least, int):
        raise TypeError(f"at_least: {at_least!r} is not a whole number of endpoints")


def _check_route(route: MethodRoute) -> None:
    if route.method and not route.method.startswith("/"):
        raise ValueError(
            f"MethodRoute.method: {route.method!r} does not begin with '/': it is /package.Service/Method, or"
            " /package.Service/ for all methods of one; empty for all"
        )
    _check_weights("groups", route.groups)
    _check_weights("addresses", route.addresses)
    for address in route.addresses:
        if fault := address_fault(address):
            raise ValueError(f"MethodRoute.addresses: {fault}")
    if not 0 < sum((*route.groups.values(), *route.addresses.values())) <= _HEAVIEST:
        raise ValueError(f"MethodRoute: the weights of groups and addresses must add up to 1 to {_HEAVIEST}")


def _check_weights(name: str, weights: object) -> None:
    if not isinstance(weights, Mapping):
        raise TypeError(f"MethodRoute.{name}: {weights!r} is not a mapping such as {{'canary': 10}}")
    for key, weight in weights.items():
        if not isinstance(key, str) or isinstance(weight, bool) or not isinstance(weight, int):
            raise TypeError(f"MethodRoute.{name}: {key!r}: {weight!r} is not a string and a whole number")
        if weight < 0:
            raise ValueError(f"MethodRoute.{name}: the weight {weight} of {key!r} is below 0")
