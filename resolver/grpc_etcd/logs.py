"""The library's log, `grpc_etcd`: what others wrote (names, keys, reasons, error texts) is escaped before it is shown.

A filter on the one logger that all modules use, so that no handler, and no module, can forget it.
"""

import logging
from typing import Any

from grpc_etcd.registry.escaping import escape, escape_lines

LOGGER = "grpc_etcd"


class Escaping(logging.Filter):
    """Escapes the arguments of a message and what an exception says; passes every record on."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Escape one record."""
        if isinstance(record.args, tuple):
            record.args = tuple(map(_escaped, record.args))
        if record.exc_info and not record.exc_text:
            text = logging.Formatter().formatException(record.exc_info)
            if (shown := escape_lines(text)) != text:
                record.exc_text = shown
        return True


def _escaped(argument: Any) -> Any:
    """Return an argument of a message; what is not a string stays as it is unless its text needs escapes."""
    if isinstance(argument, int | float):
        return argument
    text = str(argument)
    return argument if text.isprintable() else escape(text)


_ESCAPING = Escaping()


def set_up() -> None:
    """Escape what is logged from now on; once or more is the same."""
    logging.getLogger(LOGGER).addFilter(_ESCAPING)
