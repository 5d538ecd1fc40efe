"""A real Go client or writer of one registry format, run as its users would run it.

Each program under testbed/interop/ has the commands list, watch, register and call, and prints one JSON object a line.
`InteropProgram` runs one such command and reads what it printed; what frameworks print besides is passed over.
"""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testbed.build import binary
from testbed.conditions import PATIENCE_SECONDS, wait_until
from testbed.process import Process, whole_lines

Event = dict[str, Any]
# A window of calls is a quarter of a second; together these are long enough to reach every one of 120 backends.
RECENT_WINDOWS = 4


class InteropProgram(Process):
    """One running command of one program."""

    def __init__(
        self, program: str, command: str, folder: Path, *flags: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """Prepare it; `with` or start() runs it."""
        log = folder / f"{program}-{command}.log"
        super().__init__(f"{program} {command}", [binary(program), command, *flags], log, environment)

    def events(self, kind: str) -> list[Event]:
        """Everything of one kind that it has printed so far."""
        events = (parsed(line) for line in whole_lines(self.log) if line.startswith("{"))
        return [event for event in events if event.get("event") == kind]

    def wait_for(self, kind: str) -> Event:
        """Wait until it has printed something of this kind, and return the last of it."""
        self.wait_ready(lambda: bool(self.events(kind)))
        return self.events(kind)[-1]

    def wait_for_set(self, addresses: set[str], timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until its watch says that just these addresses are there."""
        wait_until(
            lambda: self.last_set() == addresses,
            f"{self.name} to see {len(addresses)} addresses (it sees {len(self.last_set() or ())})",
            timeout_seconds,
        )

    def last_set(self) -> set[str] | None:
        """Return the addresses that its watch told last; None before the first."""
        sets = self.events("set")
        return set(sets[-1]["addresses"] or ()) if sets else None

    def answering(self) -> set[str]:
        """Return the addresses that answered its calls in the last second."""
        return {address for window in self.events("called")[-RECENT_WINDOWS:] for address in window["answered"]}

    def has_only_failed(self) -> bool:
        """Whether all calls of the last second failed."""
        recent = self.events("called")[-RECENT_WINDOWS:]
        return (
            len(recent) == RECENT_WINDOWS
            and not any(w["answered"] for w in recent)
            and all(w["failed"] for w in recent)
        )

    def terminate(self) -> int | None:
        """Ask it to end, as a rollout would, and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(PATIENCE_SECONDS)


def parsed(line: str) -> Event:
    """Read one line; what is no JSON object is an empty event."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
