"""Who did what when: what is printed of a run that went wrong."""

import logging
from collections import deque
from typing import Any

from tests.simulation.virtual_time import OWNER, Clock

KEPT = 4_000  # lines; arbitrary


class Timeline(logging.Handler):
    """Collects the lines of a run, and the log of the code that is simulated."""

    def __init__(self, clock: Clock, level: int = logging.INFO) -> None:
        super().__init__(level)
        self._clock = clock
        self.lines: deque[str] = deque(maxlen=KEPT)
        self.unexpected: list[str] = []  # log lines that must never be

    def note(self, who: str, what: str) -> None:
        """Add a line."""
        self.lines.append(f"{self._clock.elapsed:12.3f}  {who:<10}  {what}")

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line of a log."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        details = " ".join(f"{name}={value!s:.200}" for name, value in fields.items())
        text = f"{record.levelname.lower()}: {record.getMessage()} {details}".rstrip()
        if record.exc_info and record.exc_info[1]:
            self.unexpected.append(f"{OWNER.get()}: {text}: {record.exc_info[1]!r}")
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self.note(OWNER.get(), text)

    def tell(self, lines: int = 200) -> str:
        """Return the last lines."""
        return "\n".join(list(self.lines)[-lines:])
