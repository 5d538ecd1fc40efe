"""A registry that is served to other processes too puts up there what its own channels have, and nothing older."""

from collections.abc import Callable

from grpc_etcd.testing import MemoryRegistry
from grpc_etcd.xds.names import ServiceName
from grpc_etcd.xds.resource_cache import ResourceCache
from grpc_etcd.xds.service import ServiceResources
from testbed.conditions import wait_until

GREETER = ServiceName("default", "greeter")


class Overtaken(ResourceCache):
    """A board on which the first set comes late: the service has changed, and that is up, before it is."""

    overtake: Callable[[], None] | None

    def publish(
        self, owner: ServiceName, resources: ServiceResources, *, instead_of: ServiceResources | None = None
    ) -> None:
        overtake, self.overtake = self.overtake, None
        if overtake:
            overtake()
        super().publish(owner, resources, instead_of=instead_of)


def test_a_service_that_changes_as_its_registry_begins_to_be_served_is_served_as_it_is() -> None:
    with MemoryRegistry() as registry, registry.pinned("greeter") as followed:
        registry.set_endpoints("greeter", "10.0.0.1:9000")
        wait_until(lambda: followed.published and followed.published.size == 1, "one endpoint is published")
        resource_cache = Overtaken()

        def change() -> None:
            before = followed.published
            registry.set_endpoints("greeter", "10.0.0.1:9000", "10.0.0.2:9000")
            wait_until(lambda: resource_cache.look_up(GREETER).is_known, "the newer set is up")
            assert followed.published is not before

        resource_cache.overtake = change
        registry.serve_on("default", resource_cache)
        found = resource_cache.look_up(GREETER)
        assert isinstance(found, ServiceResources)
        assert found.size == 2
