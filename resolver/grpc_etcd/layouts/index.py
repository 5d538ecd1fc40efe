"""All layouts by name: the one place that knows the list."""

from collections.abc import Callable

from grpc_etcd.layouts.gomicro import GoMicro
from grpc_etcd.layouts.gozero import GoZero
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.layouts.jupiter_v2 import JupiterV2
from grpc_etcd.layouts.kitex import Kitex
from grpc_etcd.layouts.kratos import Kratos
from grpc_etcd.layouts.naming import EtcdNaming
from grpc_etcd.registry.layout import Layout

DEFAULT_MODE = "unknown-mode"

# Each takes the prefix, or None for the format's own, without the slashes that the format adds itself.
_WITH_PREFIX: dict[str, Callable[[str | None], Layout]] = {
    "jupiter": lambda prefix: Jupiter() if prefix is None else Jupiter(prefix.strip("/")),
    "etcd-naming": lambda prefix: EtcdNaming() if prefix is None else EtcdNaming(prefix.rstrip("/")),
    "go-zero": lambda prefix: GoZero() if prefix is None else GoZero(prefix.rstrip("/")),
    "kratos": lambda prefix: Kratos() if prefix is None else Kratos(prefix.rstrip("/")),
    "kitex": lambda prefix: Kitex() if prefix is None else Kitex(prefix.rstrip("/")),
}

LAYOUT_NAMES = ("jupiter", "jupiter-v2", "etcd-naming", "go-zero", "kratos", "kitex", "go-micro")
WITHOUT_PREFIX = frozenset(LAYOUT_NAMES) - _WITH_PREFIX.keys()  # there `spec.prefix` decides on the policy's key alone


def make_layout(name: str, prefix: str | None = None, mode: str = DEFAULT_MODE) -> Layout:
    """Make the layout called `name`; unknown names are a ValueError.

    A `prefix` of None is the format's own default; formats without one (WITHOUT_PREFIX) pass it over. `mode` is
    Jupiter's APP_MODE and means something to jupiter-v2 only.
    """
    if name in _WITH_PREFIX:
        return _WITH_PREFIX[name](prefix)
    match name:
        case "jupiter-v2":
            return JupiterV2(mode)
        case "go-micro":
            return GoMicro()
    raise ValueError(f"there is no layout {name!r}; the layouts are {', '.join(LAYOUT_NAMES)}")
