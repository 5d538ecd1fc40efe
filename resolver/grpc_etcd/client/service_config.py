"""What a program asks of its own channel by the option `grpc.service_config` (gRFC A6), as far as it can be had. Pure.

gRPC ignores that option on an xDS channel without a word. So it is read here: the timeout and `waitForReady` of a
method are applied to each call by the channel itself, and the retry policy becomes part of the routes that this channel
is given. Everything else is refused with a sentence, because a setting without effect is found out too late.

A method's configuration is that of its own name, else that of its service, else the one without a name; it is taken
whole, as gRPC does.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpc_etcd.registry.policy import LEAST_RETRY_SECONDS, Retry, RetryOn
from grpc_etcd.xds.retries import MethodRetries

OPTION = "grpc.service_config"
_SECONDS = re.compile(r"\d+(\.\d{1,9})?s")
_LONGEST_BASE_SECONDS, _LONGEST_SECONDS = 60, 600  # what a policy may say
_LEAST_ATTEMPTS, _MOST_ATTEMPTS = 2, 5  # gRFC A6; gRPC takes more for 5
_CODES = {
    1: RetryOn.CANCELLED,
    4: RetryOn.DEADLINE_EXCEEDED,
    8: RetryOn.RESOURCE_EXHAUSTED,
    13: RetryOn.INTERNAL,
    14: RetryOn.UNAVAILABLE,
}
_CODE_NAMES = {
    "CANCELLED": RetryOn.CANCELLED,
    "DEADLINE_EXCEEDED": RetryOn.DEADLINE_EXCEEDED,
    "RESOURCE_EXHAUSTED": RetryOn.RESOURCE_EXHAUSTED,
    "INTERNAL": RetryOn.INTERNAL,
    "UNAVAILABLE": RetryOn.UNAVAILABLE,
}
_INSTEAD = {
    "loadBalancingConfig": "pass a Policy(load_balancing=...) to registry.configure()",
    "loadBalancingPolicy": "pass a Policy(load_balancing=...) to registry.configure()",
    "retryThrottling": "remove it; outlier detection ejects failing endpoints",
    "healthCheckConfig": "remove it; the registry has the health of each endpoint",
    "hedgingPolicy": "remove it; gRPC does not hedge calls of an xDS channel",
    "maxRequestMessageBytes": "use the channel option grpc.max_send_message_length",
    "maxResponseMessageBytes": "use the channel option grpc.max_receive_message_length",
}


@dataclass(frozen=True, slots=True)
class MethodConfig:
    """What holds for the calls of a method; None is no wish."""

    timeout_seconds: float | None = None
    wait_for_ready: bool | None = None
    retry: Retry | None = None


NOTHING = MethodConfig()


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """The configurations by `/service/method`, by `/service/`, or by the empty text for all others."""

    methods: Mapping[str, MethodConfig] = field(default_factory=dict)

    def of(self, method: str) -> MethodConfig:
        """Return what holds for a method, such as `/shop.Greeter/SayHello`."""
        service = method.rpartition("/")[0] + "/"
        found = self.methods.get(method) or self.methods.get(service) or self.methods.get("")
        return found or NOTHING

    @property
    def retries(self) -> MethodRetries:
        """Return the methods whose calls are tried again, or expressly are not; empty if there is no such wish."""
        if not any(each.retry for each in self.methods.values()):
            return ()
        return tuple(sorted((method, each.retry) for method, each in self.methods.items()))


def split_options(options: Iterable[tuple[str, Any]]) -> tuple[ChannelConfig, list[tuple[str, Any]]]:
    """Take the service config out of a channel's options; the last one counts. Raises ValueError for what cannot be."""
    options = list(options)
    given = [value for name, value in options if name == OPTION]
    others = [(name, value) for name, value in options if name != OPTION]
    return (parse_service_config(given[-1]) if given else ChannelConfig()), others


def parse_service_config(text: str | bytes) -> ChannelConfig:
    """Read a service config; raises ValueError, whose text names what is wrong or cannot be followed."""
    try:
        raw = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise _fault(f"it is not JSON: {error}") from error
    known = _members(raw, "it", ("methodConfig",))
    methods: dict[str, MethodConfig] = {}
    for config in _list(known.get("methodConfig", []), "methodConfig"):
        for name, parsed in _read_method_config(config):
            if name in methods:
                raise _fault(f"two entries of methodConfig have the name {name or '{}'!r}")
            methods[name] = parsed
    return ChannelConfig(methods)


def _fault(text: str) -> ValueError:
    return ValueError(f"the channel option {OPTION}: {text}")


def _members(raw: object, what: str, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise _fault(f"{what} is {raw!r} instead of an object")
    for name in raw:
        if name in _INSTEAD:
            raise _fault(f"{name} is not supported on a channel to a registry; {_INSTEAD[name]}")
        if name not in known:
            raise _fault(f"{what} has an unknown member {name!r}")
    return raw


def _list(raw: object, what: str) -> Sequence[Any]:
    if not isinstance(raw, list):
        raise _fault(f"{what} is {raw!r} instead of a list")
    return raw


def _read_method_config(raw: object) -> Iterator[tuple[str, MethodConfig]]:
    known = _members(raw, "methodConfig", ("name", "waitForReady", "timeout", "retryPolicy"))
    waits = known.get("waitForReady")
    if waits is not None and not isinstance(waits, bool):
        raise _fault(f"waitForReady is {waits!r}, which is neither true nor false")
    config = MethodConfig(
        None if known.get("timeout") is None else _seconds(known["timeout"], "timeout"),
        waits,
        None if known.get("retryPolicy") is None else _read_retry(known["retryPolicy"]),
    )
    for name in _list(known.get("name", []), "name"):
        yield _read_name(name), config


def _read_name(raw: object) -> str:
    known = _members(raw, "name", ("service", "method"))
    service, method = known.get("service") or "", known.get("method") or ""
    if not isinstance(service, str) or not isinstance(method, str) or (method and not service):
        raise _fault(f"{raw!r} is not a name: it has a service, and may have a method")
    return f"/{service}/{method}" if service else ""


def _read_retry(raw: object) -> Retry:
    names = ("maxAttempts", "initialBackoff", "maxBackoff", "backoffMultiplier", "retryableStatusCodes")
    known = _members(raw, "retryPolicy", names)
    for name in names:
        if name not in known:
            raise _fault(f"retryPolicy lacks {name}")
    attempts, multiplier = known["maxAttempts"], known["backoffMultiplier"]
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < _LEAST_ATTEMPTS:
        raise _fault(f"maxAttempts is {attempts!r}, which is not a whole number of at least {_LEAST_ATTEMPTS}")
    if isinstance(multiplier, bool) or not isinstance(multiplier, int | float) or not 0 < multiplier < math.inf:
        raise _fault(f"backoffMultiplier is {multiplier!r}, which is not a number above 0")
    codes = _list(known["retryableStatusCodes"], "retryableStatusCodes")
    if not codes:
        raise _fault("retryableStatusCodes is empty")
    base = min(max(_seconds(known["initialBackoff"], "initialBackoff"), LEAST_RETRY_SECONDS), _LONGEST_BASE_SECONDS)
    longest = min(max(_seconds(known["maxBackoff"], "maxBackoff"), base), _LONGEST_SECONDS)
    return Retry(
        attempts=min(attempts, _MOST_ATTEMPTS),
        retry_on=tuple(dict.fromkeys(map(_read_code, codes))),
        base_interval_seconds=base,
        max_interval_seconds=longest,
    )


def _read_code(raw: object) -> RetryOn:
    found = _CODE_NAMES.get(raw.upper()) if isinstance(raw, str) else None
    if isinstance(raw, int) and not isinstance(raw, bool):
        found = _CODES.get(raw)
    if found is None:
        raise _fault(f"gRPC retries calls of an xDS channel only after {', '.join(_CODE_NAMES)}, not after {raw!r}")
    return found


def _seconds(raw: object, what: str) -> float:
    if not isinstance(raw, str) or not _SECONDS.fullmatch(raw) or not float(raw[:-1]):
        raise _fault(f"{what} is {raw!r}, which is not a duration above 0 such as 0.5s")
    return float(raw[:-1])
