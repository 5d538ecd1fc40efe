"""Where the drivers report exceptions that nobody foresaw, unless whoever uses them wants to learn of these."""

import logging

_LOG = logging.getLogger("grpc_etcd")


def log_unexpected(key: bytes, error: Exception) -> None:
    """Log an exception; `key` is the first one of the range that it is about, empty when it is about none."""
    _LOG.error(
        "Unexpected error in the watch of %r; all others continue",
        key,
        exc_info=error,
        extra={"event": "unexpected_error"},
    )


def log_unexpected_renewal(error: Exception) -> None:
    """Log an exception about leases that are kept alive."""
    _LOG.error(
        "Unexpected error while leases are kept alive, continuing",
        exc_info=error,
        extra={"event": "unexpected_error"},
    )
