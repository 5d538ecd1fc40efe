"""Programs of their own, in other processes, beside a real etcd."""

import subprocess
import sys
import textwrap

from testbed.environments import variables

from .conftest import World

PREAMBLE = """
import os, sys, threading, time
import grpc, grpc_etcd
from testbed.greeter import say_hello
registry = grpc_etcd.Registry(sys.argv[1])
def call(channel):
    return say_hello(channel)("x", timeout=30, wait_for_ready=True)
"""


def run(world: World, program: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program against the world's etcd to its end."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PREAMBLE + textwrap.dedent(program), world.server.endpoints],
        env={**variables(), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def lines(world: World, program: str, environment: dict[str, str] | None = None) -> list[str]:
    done = run(world, program, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()
