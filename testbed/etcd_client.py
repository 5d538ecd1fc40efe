"""The etcd client for threads, made of the one for asyncio: the same methods without `await`."""

import re
from collections.abc import Mapping
from pathlib import Path

from testbed import chart

FOLDER = chart.ROOT / "resolver/grpc_etcd/etcd"
SOURCE, MADE = FOLDER / "aio/client.py", FOLDER / "blocking/client.py"
RULES = (
    (r"`make gen` makes the client for threads of it\.", "Made by `make gen` of aio/client.py: edit that one."),
    (r"belongs to one event loop", "may be shared by all threads"),
    (r"for asyncio", "for threads"),
    (r"\basync def __a(enter|exit)__", r"def __\1__"),
    (r"\b(async|await) ", ""),
    (r"\betcd\.aio\.", "etcd.blocking."),
    (r"\bgrpc\.aio\b", "grpc"),
    (r"# for threads: ", ""),
)


def outputs() -> Mapping[Path, str]:
    """Give the client for threads."""
    text = SOURCE.read_text()
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return {MADE: text}
