"""What the state machine of a watch hub has its driver do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from grpc_etcd.etcd.calls import Steps
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.etcd.hub.watch import Watch
from grpc_etcd.etcd.model import News


@dataclass(frozen=True, slots=True)
class Ask:
    """Make the unary calls of some steps and hand on what comes of them, with the time."""

    steps: Steps[Any]
    answered: Callable[[Any, float], None]
    failed: Callable[[EtcdError, float], None]


@dataclass(frozen=True, slots=True)
class Open:
    """Open the watch stream of this number, and read all its replies."""

    number: int


@dataclass(frozen=True, slots=True)
class Write:
    """Send a request on the stream; requests may be written before the stream is open."""

    request: Any


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the stream; a fault is one that the stream's member is to answer for."""

    fault: EtcdError | None = None


@dataclass(frozen=True, slots=True)
class Tell:
    """Hand this to the consumer of a range."""

    watch: Watch
    news: News


@dataclass(frozen=True, slots=True)
class LogIn:
    """Drop the token: the next call needs a new one."""


Command: TypeAlias = Ask | Open | Write | HangUp | Tell | LogIn
