"""What the options of a registry may be: refused where they are given, with a sentence, instead of failing later.

Nothing here connects, reads a file or reads the environment. `settings` uses the same checks for the variables.
"""

import inspect
import ipaddress
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registry.endpoint import address_fault, name_fault
from grpc_etcd.registry.keywords import keywords, unknown_option
from grpc_etcd.registry.layout import Layout

ParamsT = ParamSpec("ParamsT")
ReturnT = TypeVar("ReturnT")

_TEXTS = ("user", "server_name", "zone", "region", "cluster", "client_id", "pod_ip")
_FILES = ("ca", "cert", "key", "password_file", "cache_dir")
_LAYOUT_METHODS = ("prefix", "encode", "decode")


def taking(
    options: Any, where: str, more: Any = None
) -> Callable[[Callable[ParamsT, ReturnT]], Callable[ParamsT, ReturnT]]:
    """Let a function with `**options` take those of a class's annotations only, and show them in its signature.

    `where` is what a refusal calls it; `.method` stands for that of the object's own class. `more` is a second class.
    """
    known: Mapping[str, Any] = options.__annotations__ | (more.__annotations__ if more else {})

    def decorate(function: Callable[ParamsT, ReturnT]) -> Callable[ParamsT, ReturnT]:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        named = {each.name for each in own}
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=..., annotation=kind)
            for name, kind in known.items()
            if name not in named
        ]

        def checked(*args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ReturnT:
            if unknown := kwargs.keys() - named - known.keys():
                called = f"{type(args[0]).__name__}{where}" if where.startswith(".") else where
                raise TypeError(unknown_option(called, unknown, dict.fromkeys([*keywords(own), *known])))
            return function(*args, **kwargs)

        checked.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]  # for inspect
        checked.__doc__, checked.__name__ = function.__doc__, function.__name__
        checked.__qualname__, checked.__module__ = function.__qualname__, function.__module__
        return checked

    return decorate


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what no registry can use: TypeError for a wrong type, ValueError for a wrong value."""
    for name in _TEXTS:
        check_type(name, options.get(name, ""), str, "a string")
    for name in _FILES:
        if options.get(name) is not None:
            check_type(name, options[name], (str, Path), "a path")
    for name in ("prefix", "name"):
        if options.get(name) is not None:
            check_type(name, options[name], str, "a string")
    called: str | None = options.get("name")
    if called is not None and (fault := name_fault(called)):
        raise ValueError(f"name: {fault}")
    if fault := pod_ip_fault(options.get("pod_ip", "")):
        raise ValueError(f"pod_ip: {fault}")
    _check_timeout(options.get("etcd_timeout_seconds", 1.0))
    if fault := login_fault(options.get("user", ""), options.get("password", ""), options.get("password_file")):
        raise ValueError(fault)


def check_type(name: str, value: object, kinds: Any, expected: str) -> None:
    """Refuse a value of another type."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name}: {value!r} is not {expected}")


def _check_timeout(seconds: object) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"etcd_timeout_seconds: {seconds!r} is not a number of seconds")
    if fault := timeout_fault(seconds):
        raise ValueError(f"etcd_timeout_seconds: {fault}")


def timeout_fault(seconds: float) -> str | None:
    """Return why etcd cannot be given so many seconds to answer."""
    return None if 0 < seconds < math.inf else f"{seconds} is not a time above 0 seconds"


def pod_ip_fault(text: str) -> str | None:
    """Return why this cannot be a Pod's address; empty means that there is none, which is no fault."""
    try:
        return None if not text else str(ipaddress.ip_address(text)) and None
    except ValueError:
        return f"{text!r} is not an IP address (without a port)"


def login_fault(user: str, password: object, password_file: str | Path | None) -> str | None:
    """Return what is missing to log in to etcd, or is said twice."""
    if password and password_file:
        return "password and password_file exclude each other: give one of them"
    if (password or password_file) and not user:
        return "a password is given without a user: also give user"
    if user and not password and not password_file:
        return f"the user {user!r} is given without a password: also give password_file or password"
    return None


def choose_layouts(chosen: object, prefix: str | None) -> tuple[Layout, ...]:
    """Make the layouts that are named; one name stands for itself."""
    listed = (chosen,) if isinstance(chosen, str) or _is_layout(chosen) else chosen
    if not isinstance(listed, Iterable):
        raise TypeError(f"layouts: {chosen!r} is neither a layout's name nor a sequence of names")
    layouts = tuple(make_layout(each, prefix) if isinstance(each, str) else each for each in listed)
    if wrong := [each for each in layouts if not _is_layout(each)]:
        raise TypeError(f"layouts: {wrong[0]!r} is neither a layout's name nor a Layout")
    if not layouts:
        raise ValueError("layouts: it is empty; give at least one layout")
    return layouts


def _is_layout(each: object) -> bool:
    return all(callable(getattr(each, method, None)) for method in _LAYOUT_METHODS)


def choose_schemes(chosen: object) -> tuple[str, ...]:
    """Return the schemes that are taken; one stands for itself."""
    listed = (chosen,) if isinstance(chosen, str) else chosen
    if not isinstance(listed, Iterable) or not (schemes := tuple(listed)):
        raise TypeError(f"schemes: {chosen!r} is neither a scheme nor a sequence of schemes")
    for scheme in schemes:
        check_type("schemes", scheme, str, "a string")
    return schemes


def choose_static(services: object) -> dict[str, tuple[str, ...]]:
    """Return the addresses of each service of a static registry."""
    if not isinstance(services, Mapping):
        raise TypeError(f"{services!r} is not a mapping such as {{'greeter': 'localhost:50051'}}")
    found = {}
    for name, addresses in services.items():
        check_type("a static service's name", name, str, "a string")
        listed = (addresses,) if isinstance(addresses, str) else tuple(addresses)
        missing = None if listed else "it has no address"
        if fault := name_fault(name) or missing or next(filter(None, map(static_address_fault, listed)), None):
            raise ValueError(f"the static service {name!r}: {fault}")
        found[name] = listed
    return found


def static_address_fault(address: object) -> str | None:
    """Return why a static service cannot be there."""
    return address_fault(address) if isinstance(address, str) else f"{address!r} is not a string such as 'host:port'"


def parse_static(text: str) -> dict[str, tuple[str, ...]]:
    """Read `greeter=localhost:50051,localhost:50052;users=localhost:50061`; raises ValueError."""
    found: dict[str, tuple[str, ...]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, addresses = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not of the form name=host:port[,host:port...]")
        if name.strip() in found:
            raise ValueError(f"{name.strip()!r} is named twice; its addresses are separated by commas")
        found[name.strip()] = tuple(filter(None, (address.strip() for address in addresses.split(","))))
    return choose_static(found)
