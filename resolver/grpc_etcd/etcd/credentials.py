"""The token of a user, shared by all calls of one client.

The password is read again at each login, so that a rotated one is picked up.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from grpc_etcd.etcd import calls
from grpc_etcd.etcd.calls import Call
from grpc_etcd.etcd.endpoints import Password
from grpc_etcd.etcd.errors import EtcdError, PermissionDenied, TokenRefused, UnreadableFile
from grpc_etcd.threads import contain

Metadata: TypeAlias = tuple[tuple[str, str], ...]

# Sent on streams: without it a member that has lost its quorum keeps a watch open and silent.
HAS_LEADER: Metadata = (("hasleader", "true"),)


class Credentials:
    """User, password and the current token. A driver logs in when `token` is None, and one caller at a time."""

    def __init__(self, user: str, password: Password) -> None:
        self.user = user
        self._password = password
        self.token: Metadata | None = None if user else ()

    @property
    def asks_program(self) -> bool:
        """Whether the password comes from a function of the program, which may take as long as it likes."""
        return not isinstance(self._password, str | Path)

    def log_in(self) -> Call[str]:
        """Return the call that fetches a token."""
        return calls.authenticate(self.user, self._read_password())

    def accept(self, token: str) -> Metadata:
        """Use this token from now on. An empty one stands for a cluster without authentication."""
        self.token = (("token", token),) if token else ()
        return self.token

    def drop(self, refused: Metadata | None) -> None:
        """Forget the token that was refused, unless another one has taken its place."""
        if self.user and self.token is refused:
            self.token = None

    def is_refused(self, token: Metadata, error: EtcdError) -> bool:
        """Return whether an error is about the token, so that a new login fixes it.

        An etcd that asked nobody for a user when this client logged in may do so by now. It then asks for a token,
        unless the connection has a client certificate: whoever shows one without a token is the user that its common
        name says, and may do nothing where there is none of that name.
        """
        return bool(self.user) and (
            isinstance(error, TokenRefused) or (isinstance(error, PermissionDenied) and not token)
        )

    def forget_that_nobody_was_asked(self) -> None:
        """Find out again whether etcd asks for a user."""
        if self.token == ():
            self.drop(self.token)

    def _read_password(self) -> str:
        match self._password:
            case str(text):
                return text
            case Path() as path:
                return read_password(path)
            case source:
                return ask_password(source)


class UselessFunction(UnreadableFile):
    """The program's function gives no password: nobody was asked."""

    remedy = "Fix the function that returns the password; it is called again at the next login."


def ask_password(source: Callable[[], str]) -> str:
    """Call a program's function; one that gives up on the program ends no thread of ours, which would be deaf."""
    try:
        found: object = source()
    except SystemExit as error:
        raise UselessFunction(f"the password function raised {error!r}") from error
    except BaseException as error:
        if contain(error) is error:
            raise
        raise UselessFunction(f"the password function raised {error!r}") from error
    if not isinstance(found, str | bytes):
        raise UselessFunction(f"the password function returned {type(found).__name__}, not a string")
    try:
        return found.decode() if isinstance(found, bytes) else found.encode().decode()
    except UnicodeError as error:
        raise UselessFunction("the password function returned a string that cannot be sent") from error


def read_password(path: Path) -> str:
    """Read a password file; a trailing line break does not belong to the password."""
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"the password file cannot be read: {error}") from error
