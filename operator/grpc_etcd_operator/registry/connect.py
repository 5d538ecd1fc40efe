"""Opens clients of the registries' etcds as the settings describe them."""

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.endpoints import Tls
from grpc_etcd_operator.core.claims import parse_etcds
from grpc_etcd_operator.settings import RegistrySettings, Settings

CALL_SECONDS = 5.0


def open_etcd(registry: RegistrySettings) -> Etcd:
    """Open a client of a registry; nothing is sent yet."""
    secure = registry.ca or registry.cert or any(each.startswith("https://") for each in registry.endpoints)
    tls = Tls(registry.ca, registry.cert, registry.key, registry.server_name) if secure else None
    password = registry.password_file or ""
    return Etcd(registry.endpoints, user=registry.user, password=password, tls=tls, timeout_seconds=CALL_SECONDS)


def distinct(settings: Settings) -> list[RegistrySettings]:
    """List the registries without those that are another name of an earlier one's etcd."""
    etcds = parse_etcds({registry.name: registry.endpoints for registry in settings.registries})
    return [each for each in settings.registries if etcds[each.name] == each.name]
