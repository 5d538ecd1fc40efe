"""Write docs/reference/api.md: every public name of the library, as its own docstrings and signatures say it.

What is public is what `__all__` of `grpc_etcd`, `grpc_etcd.aio` and `grpc_etcd.testing` names; of a class, every method
without an underscore that it or a base of this library defines. Fields are shown with their comments, which hold units.
"""

import dataclasses
import enum
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc_etcd
import grpc_etcd.aio
import grpc_etcd.testing
from testbed import chart

PAGE = chart.ROOT / "docs/reference/api.md"
BANNER = "<!-- Made by `make gen`; edit the source that the first sentence names. -->\n"
_MODULES = re.compile(r"\b(?:grpc_etcd|collections|pathlib|typing|contextlib|types|concurrent)(?:\.\w+)*\.(?=\w)")
_PRIVATE = re.compile(r"\._\w+\.")  # where grpc keeps what it gives a public name too
_UNPACKED = re.compile(r"\*<class '(.*?)'>")
_FIELD = re.compile(r"^    (\w+): .*?  # (.*)$")
_INHERITED = {"add_note", "with_traceback"}  # every exception has them
# What the parts of the library ask of a registry; no application needs it.
_FOR_PARTS = {
    "all_registrars",
    "default_timeout",
    "deliver_progress",
    "exclusively",
    "find_followed",
    "follow",
    "forked",
    "introduce",
    "is_of",
    "is_policy_known",
    "join",
    "lead",
    "leave",
    "known_registrars",
    "leave_resource_cache",
    "let_go_empty",
    "make_binding",
    "pinned",
    "prepare",
    "refused",
    "registrar",
    "release",
    "report",
    "serve_on",
    "wait_for_policy",
}
# In the order of docs/client.md.
_FIRST = (
    "grpc_etcd.Registry",
    "grpc_etcd.RegistryOptions",
    "grpc_etcd.insecure_channel",
    "grpc_etcd.secure_channel",
    "grpc_etcd.default_registry",
    "grpc_etcd.SettingsError",
    "grpc_etcd.StaticRegistry",
    "grpc_etcd.aio.AioEtcdRegistry",
    "grpc_etcd.aio.insecure_channel",
    "grpc_etcd.aio.secure_channel",
    "grpc_etcd.Endpoint",
    "grpc_etcd.Snapshot",
    "grpc_etcd.Policy",
    "grpc_etcd.Registration",
    "grpc_etcd.stop_on_sigterm",
    "grpc_etcd.stop_aio_on_sigterm",
    "grpc_etcd.testing.MemoryRegistry",
)
NARROW = 100  # characters of a signature that stay on one line; arbitrary


def outputs() -> Mapping[Path, str]:
    """Give the page."""
    return {PAGE: BANNER + "".join(_page())}


def public_objects() -> dict[str, Any]:
    """Give every public name of the library, as an application writes it, and what it stands for."""
    found = {f"grpc_etcd.{name}": getattr(grpc_etcd, name) for name in grpc_etcd.__all__}
    found |= {f"grpc_etcd.aio.{name}": getattr(grpc_etcd.aio, name) for name in ("insecure_channel", "secure_channel")}
    found |= {
        f"grpc_etcd.aio.{name}": getattr(grpc_etcd.aio, name) for name in ("AioEtcdRegistry", "AioCompoundRegistry")
    }
    return found | {f"grpc_etcd.testing.{name}": getattr(grpc_etcd.testing, name) for name in grpc_etcd.testing.__all__}


def public_methods(of: type) -> Iterator[tuple[str, Any]]:
    """Give what a class lets its users call or read, but for what Python gives it, or another class of the page."""
    others = [base for base in of.__mro__[1:] if base in public_objects().values()]
    for name in sorted(dir(of)):
        member = inspect.getattr_static(of, name)
        owner = next((base for base in of.__mro__ if name in vars(base)), object)
        if any(inspect.getattr_static(other, name, None) is member for other in others):
            continue
        if name.startswith("_") or not owner.__module__.startswith("grpc_etcd") or name in _INHERITED | _FOR_PARTS:
            continue
        if isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member):
            yield name, member


def _page() -> Iterator[str]:
    yield "# The Python API\n\nFrom the docstrings of `resolver/grpc_etcd`.\n"
    yield "[client.md](../client.md) is the tutorial.\n"
    yield "Times are in seconds and may be fractions; everything is thread-safe unless documented otherwise.\n"
    for name, described in sorted(public_objects().items(), key=lambda item: _rank(item[0])):
        yield from _entry(name, described)


def _rank(name: str) -> tuple[int, str]:
    """Give the place of a name on the page: what most programs use comes first, all else by name."""
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name.lower())


def _entry(name: str, described: Any) -> Iterator[str]:
    yield f"\n## {name}\n"
    if not isinstance(described, type):
        yield f"\n```python\n{signature_of(name.rpartition('.')[2], described)}\n```\n"
        yield f"\n{_text(described)}\n"
        return
    if _is_made_by_users(described):
        yield f"\n```python\n{_signature(described, described.__name__, described)}\n```\n"
    yield f"\n{_text(described)}\n"
    if bases := [base.__name__ for base in described.__mro__[1:] if base in public_objects().values()]:
        yield f"\nHas all that `{bases[0]}` has too.\n"
    yield from _fields(described)
    for method, member in public_methods(described):
        yield from _method(described, method, member)


def _is_made_by_users(described: type) -> bool:
    return not issubclass(described, enum.Enum) and not typing.is_typeddict(described)


def _fields(described: type) -> Iterator[str]:
    rows = list(_rows(described))
    if rows:
        yield "\n| field | type | what it is |\n| --- | --- | --- |\n"
        yield from (f"| `{name}` | {_cell(kind)} | {_cell(what)} |\n" for name, kind, what in rows)


def _rows(described: type) -> Iterator[tuple[str, str, str]]:
    comments = _comments(described)
    if issubclass(described, enum.Enum):
        yield from ((each.name, f"`{each.value}`", comments.get(each.name, "")) for each in described)
    elif dataclasses.is_dataclass(described):
        for field in dataclasses.fields(described):
            yield field.name, f"`{_kind(field.type)}`", comments.get(field.name, "")
    elif typing.is_typeddict(described):
        yield from ((name, f"`{_kind(kind)}`", "") for name, kind in described.__annotations__.items())


def _comments(described: type) -> dict[str, str]:
    """Give what stands behind the fields of a class in its source."""
    lines = inspect.getsource(described).splitlines()
    found = {match[1]: match[2] for line in lines if (match := _FIELD.match(line))}
    members = re.compile(r"^    ([A-Z_]+) = .*?  # (.*)$")
    return found | {match[1]: match[2] for line in lines if (match := members.match(line))}


def _method(of: type, name: str, member: Any) -> Iterator[str]:
    if isinstance(member, property):
        yield f"\n### {of.__name__}.{name}\n\n{_text(member)}\n"
        return
    function = getattr(of, name)
    shown = "async " if inspect.iscoroutinefunction(function) else ""
    signature = _signature(of, name, function)
    yield f"\n### {of.__name__}.{name}\n\n```python\n{shown}{signature}\n```\n\n{_text(function)}\n"


def _signature(of: type, name: str, called: Any) -> str:
    signature = signature_of(name, called)
    for variable, kind in _chosen(of):
        signature = signature.replace(repr(variable), kind)
    return signature


def _chosen(of: type) -> Iterator[tuple[Any, str]]:
    """Give the type variables of a class's bases, and what stands for each in the class."""
    for base in of.__mro__:
        for generic in getattr(base, "__orig_bases__", ()):
            variables = getattr(typing.get_origin(generic), "__parameters__", ())
            yield from zip(variables, map(_kind, typing.get_args(generic)), strict=False)


def signature_of(name: str, called: Any) -> str:
    """Write a signature as an application sees it, one parameter a line where it is long."""
    try:
        signature = inspect.signature(called)
    except ValueError:
        return f"{name}(...)"
    parameters = [each for each in signature.parameters.values() if each.name != "self"]
    shown, before_keywords = [], True
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and before_keywords:
            shown.append("*")
            before_keywords = False
        shown.append(_parameter(each))
    returns = signature.return_annotation
    back = "" if isinstance(called, type) or returns is signature.empty else f" -> {_kind(returns)}"
    line = f"{name}({', '.join(shown)}){back}"
    return line if len(line) <= NARROW else f"{name}(\n" + "".join(f"    {each},\n" for each in shown) + f"){back}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars: dict[int, str] = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
    star = stars.get(parameter.kind, "")
    kind = "" if parameter.annotation is parameter.empty else f": {_kind(parameter.annotation)}"
    is_given = parameter.default not in (parameter.empty, ...)
    return f"{star}{parameter.name}{kind}" + (f" = {_default(parameter.default)}" if is_given else "")


def _default(value: object) -> str:
    if isinstance(value, enum.Enum):
        return str(value)
    return "..." if repr(value).startswith("<") else repr(value)


def _kind(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = _UNPACKED.sub(r"Unpack[\1]", text)
    return _PRIVATE.sub(".", _MODULES.sub("", text)).replace("'", "").replace('"', "")


def _text(described: Any) -> str:
    return inspect.getdoc(described) or ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
