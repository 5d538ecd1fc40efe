"""JSON logs on standard error: one line per change, fields instead of prose, never a secret.

`event` names what happened and stays the same while messages are reworded; lines of other packages have the event
"other". Whatever a caller passes as `extra={"event": ..., "fields": {...}}` becomes fields of the line. Passwords and
tokens are never passed, here or anywhere; etcd's values are not logged either, only their keys.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

from grpc_etcd.registry.escaping import escape_json

# Kopf reports each event at its own levels; what the operator does is said by the operator.
_LOUD = {
    "grpc": logging.WARNING,
    "kopf": logging.WARNING,
    "kubernetes": logging.WARNING,
    "urllib3": logging.WARNING,
    "aiohttp": logging.WARNING,
}


# What Kopf says when a watch of its fails: sources/kopf_source.py says the same once, with what is done about it.
_REPORTED_BY_US = re.compile(r"Request attempt|.* has failed: |.* has finished unexpectedly")


def is_reported_by_us(record: logging.LogRecord) -> bool:
    """Return whether a record of Kopf's repeats what the operator logs itself."""
    return record.name.startswith("kopf") and bool(_REPORTED_BY_US.match(record.getMessage()))


def is_of_a_closed_connection(record: logging.LogRecord) -> bool:
    """Return whether a record is what uvloop logs of a TLS connection that was closed while something came in.

    Whoever closed it, as after a timeout, has reported that; a hundred connections would be a hundred tracebacks.
    """
    error = record.exc_info[1] if record.exc_info else None
    return record.name == "asyncio" and isinstance(error, RuntimeError) and "the handler is closed" in str(error)


_ENCODE = json.JSONEncoder(default=str, ensure_ascii=False).encode


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON: time, level, logger, event, message, then the caller's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", "other"),
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return escape_json(_ENCODE(line))


def set_up(level: str) -> None:
    """Send all logs of the process to standard error as JSON; `level` is the least severity, in lower case."""
    # Ten thousand Pods are ten thousand lines: what no line shows is not looked up (docs.python.org, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001  that page's way to look up no caller
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(lambda record: not (is_reported_by_us(record) or is_of_a_closed_connection(record)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in _LOUD.items():
        logging.getLogger(name).setLevel(max(least, root.level))
