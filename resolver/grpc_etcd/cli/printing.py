"""All output of the command line: tables and lines for people, JSON and YAML for programs, errors.

The one place where text of others (records, error texts of servers, names from the command line) meets a terminal: it
is escaped here, whatever the format, so no command prints by itself. Also the one place that knows what to do when
whoever reads the output has left: end in silence with 0, as `kubectl get | head` does.
"""

import contextlib
import errno
import io
import json
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpc_etcd.registry.escaping import escape, escape_json, escape_lines

OUTPUTS = ("table", "json", "yaml")
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # many times as fast, where libyaml is there
WIDE = 250  # where there is no terminal, lines are not broken
STANDARD_OUTPUT = 1
# Of a disk, a quota or a device: what else is an OSError has nothing to do with the output.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
WRITERS = frozenset({click.echo.__module__, Console.__module__})  # these alone write to the output, and to nothing else


class Failure(click.ClickException):
    """What went wrong, one sentence on each line."""

    def __init__(self, *sentences: str) -> None:
        super().__init__("\n".join(map(escape, sentences)))


class BadUsage(click.UsageError):
    """What is wrong with the command line or a setting, one sentence on each line."""

    def __init__(self, *sentences: str) -> None:
        super().__init__("\n".join(map(escape_lines, sentences)))


def print_line(text: str, *, error: bool = False) -> None:
    """Print one line, on standard error if it is about an error."""
    click.echo(escape(text), err=error)


def print_label(label: str, text: str, *, is_bad: bool = False) -> None:
    """Print one line that begins with a label."""
    click.secho(f"{label}: ", bold=True, nl=False, fg="red" if is_bad else None)
    print_line(text)


def print_data(data: object, output: str) -> None:
    """Print data for programs."""
    if output == "yaml":
        click.echo(format_yaml(data), nl=False)
    else:
        click.echo(escape_json(json.dumps(data, ensure_ascii=not _is_unicode(), indent=2)))


def print_item(data: object, output: str) -> None:
    """Print one of many for programs that read while more are to come: a line of JSON, or an item of a list in YAML."""
    if output == "yaml":
        click.echo(format_yaml([data]), nl=False)
    else:
        click.echo(escape_json(json.dumps(data, ensure_ascii=not _is_unicode())))


def print_documents(documents: Sequence[object]) -> None:
    """Print YAML documents, as kubectl reads them."""
    click.echo("---\n".join(map(format_yaml, documents)), nl=False)


def format_yaml(data: object) -> str:
    """Write YAML; as soon as it holds anything unprintable, all that is not ASCII is an escape."""
    text = _dump(data, is_unicode=_is_unicode())
    return text if escape_lines(text) == text else _dump(data, is_unicode=False)


def _dump(data: object, *, is_unicode: bool) -> str:
    try:
        return str(yaml.dump(data, Dumper=DUMPER, sort_keys=False, allow_unicode=is_unicode))
    except UnicodeEncodeError:  # libyaml cannot write a lone surrogate, which JSON in etcd may hold
        return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=is_unicode))


def _is_unicode() -> bool:
    encoding = getattr(sys.stdout, "encoding", "utf-8")  # of a standard output that is closed there is none
    return encoding.lower() in ("utf-8", "utf8")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table without frames, as kubectl does."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    for row in rows:
        # Text, since rich would take "[red]" and ":smile:" in a string for its own markup.
        table.add_row(*(Text("-" if cell in ("", None) else escape(str(cell))) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    with console.capture() as captured:
        console.print(table)
    click.echo(captured.get(), nl=False)


def print_mapping(data: Mapping[str, Any]) -> None:
    """Print one thing for people, a field on each line."""
    print_table(("", "value"), [(name, ", ".join(v) if isinstance(v, list) else v) for name, v in data.items()])


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """End the command in silence when nobody reads its output any more, and with a sentence when it has no space."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what the locale's encoding lacks
    try:
        yield
    except BrokenPipeError:
        _silence()
        raise click.exceptions.Exit(0) from None
    except OSError as error:
        if is_of_output(error):
            _silence()
            raise Failure(f"the output cannot be written: {error.strerror}") from error
        if error.errno in CANNOT_WRITE and error.filename is None:
            raise Failure(f"a file, not the output, cannot be read or written: {error.strerror}") from error
        raise


def is_of_output(error: OSError) -> bool:
    """Return whether an error is that of a write to the output, not to another file."""
    is_of_a_write = error.errno in CANNOT_WRITE and _raised_in(error) in WRITERS
    return isinstance(error, BrokenPipeError) or is_of_a_write


def _raised_in(error: BaseException) -> str:
    """Return the module whose code an error was raised in."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__")) if frames else ""


def _silence() -> None:
    """Write to nowhere from now on: the interpreter flushes once more when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # one that was closed from the start is None
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextlib.contextmanager
def ending_with_reader() -> Iterator[None]:
    """Raise BrokenPipeError in the main thread as soon as the reader of a pipe has left, not only at the next line."""
    before = signal.signal(signal.SIGPIPE, _raise_broken_pipe)
    over, ended = os.pipe()
    watcher = threading.Thread(target=_await_reader, args=(threading.get_ident(), over), name="grpc-etcd-reader")
    watcher.daemon = True
    watcher.start()
    try:
        yield
    finally:
        os.close(ended)
        watcher.join()
        os.close(over)
        signal.signal(signal.SIGPIPE, before)


def _raise_broken_pipe(*_: object) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    raise BrokenPipeError


def _await_reader(main: int, over: int) -> None:
    poll = select.poll()
    poll.register(STANDARD_OUTPUT, 0)  # that a pipe has no reader is reported unasked; a file never has any news
    poll.register(over, 0)
    if any(fd == STANDARD_OUTPUT and event & select.POLLERR for fd, event in poll.poll()):
        signal.pthread_kill(main, signal.SIGPIPE)
