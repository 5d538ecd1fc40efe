"""Where the drivers report exceptions that nobody foresaw, unless whoever uses them wants to learn of these."""

import logging
from collections.abc import Callable

from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.threads import contain

_LOG = logging.getLogger("grpc_etcd")


def log_unexpected(key: bytes, error: Exception) -> None:
    """Log an exception; `key` is the first one of the range that it is about, empty when it is about none."""
    _LOG.error(
        "Unexpected error in the watch of %r; all others continue",
        key,
        exc_info=error,
        extra={"event": "unexpected_error"},
    )


def note_unexpected(error: Exception) -> EtcdError:
    """Log an exception of a list-watch; return what it is for whoever follows."""
    log_unexpected(b"", error)
    return EtcdError(f"unexpected: {error}")


def report_safely(report: Callable[[bytes, Exception], None]) -> Callable[[bytes, Exception], None]:
    """Return a function of the program's that reports exceptions; what it raises itself is logged and ends nothing."""

    def call(key: bytes, error: Exception) -> None:
        try:
            report(key, error)
        except BaseException as failure:  # noqa: BLE001  whatever it is, all watches go on
            log_unexpected(key, contain(failure))

    return call


def log_unexpected_renewal(error: Exception) -> None:
    """Log an exception about leases that are kept alive."""
    _LOG.error(
        "Unexpected error while leases are kept alive, continuing",
        exc_info=error,
        extra={"event": "unexpected_error"},
    )
