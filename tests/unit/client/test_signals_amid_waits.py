"""A signal ends a wait of the main thread whenever it comes; also one that comes just before the wait begins."""

import subprocess
import sys

import pytest

ROUNDS = 40
# Its busy threads keep the main thread from the interpreter between CPython's look for signals and the wait.
CHILD = """
import os, signal, sys, threading
from grpc_etcd.testing import MemoryRegistry

WAITS = {{
    "watch": lambda registry: list(registry.watch("nobody")),
    "wait for endpoints": lambda registry: registry.wait_for_endpoints("nobody", timeout_seconds=100),
}}

class Signalled(Exception):
    pass

def note(*_):
    raise Signalled

def busy():
    while True:
        sum(range(2000))

def signal_soon(begun):
    begun.wait()
    os.kill(os.getpid(), signal.SIGINT)

for _ in range(3):
    threading.Thread(target=busy, daemon=True).start()
with MemoryRegistry() as registry:
    signal.signal(signal.SIGINT, note)
    for number in range({rounds}):
        begun = threading.Event()
        threading.Thread(target=signal_soon, args=(begun,), daemon=True).start()
        try:
            begun.set()
            WAITS[sys.argv[1]](registry)
        except Signalled:
            print(number, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("wait", ["watch", "wait for endpoints"])
def test_a_signal_just_before_a_wait_ends_it(wait: str) -> None:
    program = [sys.executable, "-c", CHILD.format(rounds=ROUNDS), wait]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.split() == [str(number) for number in range(ROUNDS)], ended.stderr
