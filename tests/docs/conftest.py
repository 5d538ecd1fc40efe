"""Fixtures for tests that run what the documentation says."""

import subprocess
import sys
from pathlib import Path

import pytest

from testbed.build import ROOT


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the Python modules that protoc makes of the example's greeter.proto."""
    folder = tmp_path_factory.mktemp("generated")
    source = ROOT / "examples/greeter"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={source}", f"--python_out={folder}"]
    subprocess.run([*command, f"--grpc_python_out={folder}", "greeter.proto"], check=True)
    return folder
