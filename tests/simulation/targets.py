"""The Services that some GrpcServices of a world name: what becomes of them, and whom they select by the oracle.

`heal` lets each of them select the Pods of its name again.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from testbed.models.api_server import TARGETS, ApiServerModel, Object
from tests.simulation.players import NAMESPACE

if TYPE_CHECKING:
    from tests.simulation.world import World

Selector = dict[str, str]
PORTS = [{"name": "grpc", "port": 80, "targetPort": "grpc"}]
LACKING = "lacking"  # of a spec as the oracle has it: nothing is known of whom its Service selects now


class Targets:
    """The Services; each method whose name begins with `target_` is one possible event."""

    def __init__(self, world: "World", names: Iterable[str]) -> None:
        """Take the names of the GrpcServices that name a Service, which has the same name."""
        self._world, self.names = world, sorted(names)

    @property
    def events(self) -> dict[str, Callable[[], Awaitable[None] | None]]:
        """Give all events by name."""
        return {name: getattr(self, name) for name in sorted(dir(self)) if name.startswith("target_")}

    def heal(self) -> None:
        """Let there be all, and select what they are for."""
        for name in self.names:
            if self._world.api.find(TARGETS, NAMESPACE, name):
                self.select(name, name)
            else:
                self.create(name)

    def create(self, name: str) -> None:
        """Create one."""
        metadata = {"name": name, "namespace": NAMESPACE}
        spec = {"selector": {"app": name}, "ports": PORTS}
        self._world.api.create(TARGETS, {"metadata": metadata, "spec": spec})

    def select(self, name: str, app: str) -> None:
        """Let one select other Pods; no name: none at all."""
        spec = {"selector": {"app": app}, "ports": PORTS} if app else {"ports": PORTS}
        self._world.api.update(TARGETS, NAMESPACE, name, lambda item: item.update(spec=spec))

    def delete(self, name: str) -> None:
        """Delete one."""
        self._world.api.delete(TARGETS, NAMESPACE, name)

    def _any(self) -> str:
        names = [name for name in self.names if self._world.api.find(TARGETS, NAMESPACE, name)]
        return self._world.chance.choice(names) if names else ""

    def target_goes(self) -> None:
        if name := self._any():
            self.delete(name)

    def target_is_replaced(self) -> None:
        if name := self._any():
            self.delete(name)
            self.create(name)

    def target_selects_others(self) -> None:
        if name := self._any():
            self.select(name, self._world.chance.choice(self.names))

    def target_loses_its_selector(self) -> None:
        if name := self._any():
            self.select(name, "")

    def target_may_not_be_read(self) -> None:
        for replica in self._world.replicas:
            for verb in ("list", "watch"):
                self._world.api.forbid(replica.name, verb, TARGETS)
        self._world.api.end_watches(TARGETS)


class Selections:
    """Knows whom each Service has last selected: what counts while it is missing, or selects nobody."""

    def __init__(self, api: ApiServerModel) -> None:
        self._api = api
        self._last: dict[str, Selector] = {}

    def resolve(self, services: Iterable[Object]) -> list[Object]:
        """Give GrpcServices as if they had the selectors of their Services."""
        return [self._resolve(each) if "serviceRef" in each["spec"] else each for each in services]

    def _resolve(self, service: Object) -> Object:
        name = service["spec"]["serviceRef"]["name"]
        found = self._api.find(TARGETS, NAMESPACE, name)
        selector = found["spec"].get("selector") if found else None
        if selector:
            self._last[name] = selector
        known = {"selector": {"matchLabels": self._last.get(name, {"app": name})}, LACKING: not selector}
        return {**service, "spec": {**service["spec"], **known}}
