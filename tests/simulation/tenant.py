"""A hostile tenant: it has a namespace of its own, an early GrpcService, and wishes for what is another's.

It takes names and prefixes, renames what it has, and makes it anew; `heal` lets it be content with a name of its own.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from testbed.models.api_server import SERVICES, Object
from tests.e2e.model.oracle import EVIL

if TYPE_CHECKING:
    from tests.simulation.world import World

PARKED = "parked"
ADDRESS = "10.66.0.1"
ALLOWED = "jupiter"  # the prefix that the admin of the simulated cluster allows for spec.prefix
HOSTILE: tuple[Mapping[str, Any], ...] = (
    {"name": "alpha"},
    {"name": "beta", "layouts": ["jupiter", "kratos"]},
    {"name": "alpha", "layouts": ["kratos"], "policy": {"timeout": "50ms"}},
    {"name": "x", "prefix": "jupiter/alpha/providers"},
    {"name": "x", "prefix": "jupiter/beta/providers", "layouts": ["jupiter", "kratos"]},
    {"name": "alpha", "prefix": "jupiter", "metricsPort": 9000},
    {"name": "synced", "prefix": "/grpc-etcd", "layouts": ["go-zero"]},
    {"name": "grpc:alpha", "layouts": ["etcd-naming"], "prefix": "grpc-etcd/owner"},
)


class Tenant:
    """The tenant; each method whose name begins with `tenant_` is one possible event."""

    def __init__(self, world: "World") -> None:
        self._world = world

    @property
    def events(self) -> dict[str, Callable[[], Awaitable[None] | None]]:
        """Give all events by name."""
        return {name: getattr(self, name) for name in sorted(dir(self)) if name.startswith("tenant_")}

    def begin(self) -> None:
        """Have a GrpcService, before there is any other, and a Pod."""
        self._create({})
        self._world.kubelet.add(EVIL, namespace=EVIL, ip=ADDRESS)

    def heal(self) -> None:
        """Have a name of its own."""
        if self._find():
            self._write({})
        else:
            self._create({})

    def tenant_attacks(self) -> None:
        if self._find():
            self._write(self._world.chance.choice(HOSTILE))

    def tenant_comes_again(self) -> None:
        if self._find():
            self._world.api.delete(SERVICES, EVIL, PARKED)
            self._create(self._world.chance.choice(HOSTILE))

    def tenant_is_content(self) -> None:
        if self._find():
            self._write({})

    def _find(self) -> Object | None:
        return self._world.api.find(SERVICES, EVIL, PARKED)

    def _create(self, spec: Mapping[str, Any]) -> None:
        metadata = {"name": PARKED, "namespace": EVIL}
        self._world.api.create(SERVICES, {"metadata": metadata, "spec": _complete(spec)})

    def _write(self, spec: Mapping[str, Any]) -> None:
        self._world.api.update(SERVICES, EVIL, PARKED, lambda item: item.update(spec=_complete(spec)))


def _complete(spec: Mapping[str, Any]) -> Object:
    return {"selector": {"matchLabels": {"app": EVIL}}, **spec}
