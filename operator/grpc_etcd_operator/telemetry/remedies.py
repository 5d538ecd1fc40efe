"""What to change when a registry cannot be used, by the names that an admin knows: settings, and values of the chart.

etcd's errors say what is wrong in etcd's terms. Here each gets the settings of this registry that it speaks of.
"""

from grpc_etcd.etcd.errors import (
    AuthFailed,
    DeadlineExceeded,
    EtcdError,
    NoLeader,
    PermissionDenied,
    Unavailable,
    UnreadableFile,
)
from grpc_etcd_operator.settings import DEFAULT_REGISTRY, SETTINGS, RegistrySettings

# Where the chart has what a field of RegistrySettings says, below `etcd` or `registries.NAME`.
CHART = {
    "endpoints": ("endpoints",),
    "ca": ("tls.secretName", "tls.caKey"),
    "cert": ("tls.certKey",),
    "key": ("tls.keyKey",),
    "server_name": ("tls.serverName",),
    "user": ("auth.user",),
    "password_file": ("auth.secretName", "auth.passwordKey"),
}
# Words of TLS libraries, as gRPC hands them on, with the fields that they speak of; the first that fits wins.
TLS_WORDS = (
    ("certificate required", ("cert", "key")),
    ("CERTIFICATE_REQUIRED", ("cert", "key")),
    ("bad certificate", ("cert", "key")),
    ("TSI_DATA_CORRUPTED", ("cert", "key")),
    # The certificate is valid, but not for this host name. gRPC says both at once, in various versions.
    ("Hostname Verification Check failed", ("endpoints", "server_name")),
    ("Peer name", ("endpoints", "server_name")),
    ("CERTIFICATE_VERIFY_FAILED", ("ca",)),
    ("certificate verify failed", ("ca",)),
)


def remedy(error: EtcdError, registry: RegistrySettings) -> str:
    """Return what to do about an error of a registry, and which settings it may be about."""
    fields = suspects(error, registry)
    if not fields:
        return error.remedy
    place = "etcd" if registry.name == DEFAULT_REGISTRY else f"registries.{registry.name}"
    values = [f"{place}.{value}" for field in fields for value in CHART[field]]
    return f"{error.remedy} Check {_list(_settings(fields, registry.name))} (in the chart {_list(values)})."


def suspects(  # noqa: PLR0911  one for each kind of error
    error: EtcdError, registry: RegistrySettings
) -> tuple[str, ...]:
    """Name the fields of the registry's settings that may have caused an error; none when it is etcd's own affair."""
    match error:
        case AuthFailed():
            return ("user", "password_file")
        case PermissionDenied():
            return ("user",)
        case NoLeader():
            return ()
        case DeadlineExceeded():
            return ("endpoints",)
        case UnreadableFile():
            return tuple(each for each in ("ca", "cert", "key", "password_file") if getattr(registry, each))
        case Unavailable():
            found = (fields for words, fields in TLS_WORDS if words in error.details)
            return next(found, ("endpoints",) if registry.ca else ("endpoints", "ca"))
    return ()


def _settings(fields: tuple[str, ...], registry: str) -> list[str]:
    chosen = [setting for setting in SETTINGS if setting.of_registry and setting.field in fields]
    if registry == DEFAULT_REGISTRY:
        return [setting.flag for setting in chosen]
    return [f"registries.{registry}.{setting.key}" for setting in chosen]


def _list(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
