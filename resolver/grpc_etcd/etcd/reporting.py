"""Where the drivers tell of exceptions that nobody foresaw, unless whoever uses them wants to hear of these."""

import logging

_LOG = logging.getLogger("grpc_etcd")


def log_unexpected(key: bytes, error: Exception) -> None:
    """Log an exception; `key` is the first one of the range that it is about, empty when it is about none."""
    _LOG.error(
        "an unexpected error about the watch of %r; all others go on",
        key,
        exc_info=error,
        extra={"event": "unexpected_error"},
    )


def log_unexpected_renewal(error: Exception) -> None:
    """Log an exception about leases that are kept alive."""
    _LOG.error(
        "an unexpected error while leases are kept alive; it goes on",
        exc_info=error,
        extra={"event": "unexpected_error"},
    )
