"""What an error of etcd means to whoever typed a command: who was refused what, and which options are to blame."""

from grpc_etcd.etcd import AuthFailed, EtcdError, PermissionDenied, Unavailable, UnreadableFile
from grpc_etcd.etcd.errors import NEEDS_CERTIFICATE, REFUSES_CERTIFICATE
from grpc_etcd.settings import ClientSettings

# Options that an error may be about, with their variables; the first kind that fits wins.
OPTIONS: tuple[tuple[type[EtcdError], str], ...] = (
    (AuthFailed, "--user and --password-file (GRPC_ETCD_USER, GRPC_ETCD_PASSWORD_FILE)"),
    (UnreadableFile, "--ca, --cert, --key and --password-file (GRPC_ETCD_CA and so on)"),
    (Unavailable, "--endpoints and --ca (GRPC_ETCD_ENDPOINTS, GRPC_ETCD_CA)"),
)

OF_CERTIFICATES = "--cert and --key (GRPC_ETCD_CERT, GRPC_ETCD_KEY)"


def explain(error: EtcdError, settings: ClientSettings) -> tuple[str, str]:
    """Return what is wrong, and the one thing to do about it."""
    if isinstance(error, PermissionDenied):
        return f"{who(settings)} {error}", error.remedy
    options = _options(error)
    return str(error), f"{error.remedy} The options are {options}." if options else error.remedy


def _options(error: EtcdError) -> str:
    if error.remedy in {NEEDS_CERTIFICATE, REFUSES_CERTIFICATE}:
        return OF_CERTIFICATES
    return next((options for kind, options in OPTIONS if isinstance(error, kind)), "")


def who(settings: ClientSettings) -> str:
    """Name the user that a command works as."""
    return f"the user {settings.user!r}" if settings.user else "this client, which has no user,"
