"""All layouts by name: the one place that knows the list."""

from collections.abc import Callable

from grpc_etcd.registry.jupiter import Jupiter
from grpc_etcd.registry.layout import Layout


def _jupiter(prefix: str | None, mode: str) -> Layout:  # noqa: ARG001
    return Jupiter() if prefix is None else Jupiter(prefix.strip("/"))


_MAKERS: dict[str, Callable[[str | None, str], Layout]] = {"jupiter": _jupiter}

LAYOUT_NAMES = tuple(_MAKERS)


def make_layout(name: str, prefix: str | None = None, mode: str = "unknown-mode") -> Layout:
    """Make the layout called `name`; a `prefix` of None is the format's own default. Unknown names are a ValueError."""
    if name not in _MAKERS:
        raise ValueError(f"there is no layout {name!r}; the layouts are {', '.join(LAYOUT_NAMES)}")
    return _MAKERS[name](prefix, mode)
