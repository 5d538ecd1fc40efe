"""Retries by method: how they become part of routes, and of a resource's name. Pure.

A channel that has a retry policy of its own asks for a listener whose name holds it, so that the server needs no memory
of channels.
"""

import base64
import json
from collections.abc import Iterable, Sequence

from grpc_etcd.registry.policy import Retry, RetryOn
from grpc_etcd.xds.resources import Route

LONGEST_RETRIES = 256 << 10  # characters of the segment: 3,000 methods and more; arbitrary
_Meeting = tuple[str, bool, Retry | None, int]
MethodRetries = tuple[tuple[str, Retry | None], ...]
"""By `/service/method`, `/service/` or the empty text for all; None: such calls are tried once."""


def write_retries(retries: MethodRetries) -> str:
    """Write retries as one segment of a resource's name: equal ones give equal strings.

    ValueError says that they are too many.
    """
    rows = [[method, *_write(retry)] for method, retry in retries]
    text = json.dumps(rows, separators=(",", ":"))
    segment = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    if len(segment) > LONGEST_RETRIES:
        raise ValueError(f"the retries of {len(rows)} methods are more than a channel can have; name services instead")
    return segment


def _write(retry: Retry | None) -> list[object]:
    if retry is None:
        return []
    return [retry.attempts, list(retry.retry_on), retry.base_interval_seconds, retry.max_interval_seconds]


def read_retries(segment: str) -> MethodRetries | None:
    """Read what `write_retries` has written; None for anything else."""
    try:
        rows = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
        return tuple((str(method), _read(*rest)) for method, *rest in rows)
    except (ValueError, TypeError, RecursionError):
        return None


def _read(*row: object) -> Retry | None:
    match row:
        case [int(attempts), list(codes), int() | float() as base, int() | float() as longest]:
            on = tuple(RetryOn(code) for code in codes)
            return Retry(attempts=attempts, retry_on=on, base_interval_seconds=base, max_interval_seconds=longest)
        case []:
            return None
    raise ValueError(row)


def apply_retries(routes: Iterable[Route], retries: MethodRetries) -> list[Route]:
    """Split routes so that each call has the retry of the most special method that it falls under.

    The routes come most special first, and so does the result. A call that falls under none keeps what its route says.
    """
    split = [
        (meeting, _rank(route.path, route.is_prefix), route)
        for route in routes
        for meeting in [(route.path, route.is_prefix, route.retry, -1), *_meetings(route, retries)]
    ]
    split.sort(key=lambda each: (_rank(*each[0][:2]), each[0][3], each[1]), reverse=True)
    found: dict[tuple[str, bool], Route] = {}
    for (path, is_prefix, retry, _), _, route in split:
        found.setdefault((path, is_prefix), Route(path, is_prefix, route.shares, retry))
    return list(found.values())


def _meetings(route: Route, retries: Sequence[tuple[str, Retry | None]]) -> Iterable[_Meeting]:
    """Return what the calls of a route and those of each method have in common: the more special of the two."""
    for method, retry in retries:
        is_prefix = not method or method.endswith("/")
        if _holds(route.path, route.is_prefix, method, is_prefix):
            yield method, is_prefix, retry, len(method)
        elif _holds(method, is_prefix, route.path, route.is_prefix):
            yield route.path, route.is_prefix, retry, len(method)


def _holds(outer: str, outer_is_prefix: bool, inner: str, inner_is_prefix: bool) -> bool:  # noqa: FBT001 - two pairs
    """Return whether each path that the inner one matches is matched by the outer one."""
    return inner.startswith(outer) if outer_is_prefix else inner == outer and not inner_is_prefix


def _rank(path: str, is_prefix: bool) -> tuple[bool, int]:  # noqa: FBT001 - a pair that belongs together
    """Rank how special a match is: a whole name before every beginning, a long one before a short one."""
    return not is_prefix, len(path)
