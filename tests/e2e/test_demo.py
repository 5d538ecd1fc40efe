"""`make demo` does what it shows, says so by its exit code, and tidies up in a cluster of somebody else's."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from testbed.apiserver import ApiServer
from testbed.build import ROOT
from testbed.conditions import wait_until
from testbed.demo import INTERRUPTED, NAMESPACE

DEMO_SECONDS = 280
FEW_CALLS = 20  # of some 80 in a second: those until the client has followed


def run_demo(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed.demo", *options],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )


def test_demo_takes_every_step_on_a_given_cluster_and_tidies_up(apiserver: ApiServer, tmp_path: Path) -> None:
    picture = tmp_path / "demo.svg"
    done = run_demo("--cluster", f"--picture={picture}", KUBECONFIG=str(apiserver.kubeconfig))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "calls failed: 0" in done.stdout
    assert "finds greeter-2 unready" in done.stdout
    assert "calls failed 0" in picture.read_text()
    assert len(set(re.findall(r"calls made:? +([0-9]+)", done.stdout))) == 1, "the table and the sum are of one time"
    (row,) = re.findall(r"^│ greeter-\d +│ .*│ no +│ no +│ +(\d+) │$", done.stdout, re.MULTILINE)
    assert int(row) <= FEW_CALLS, "they are those since its key went"
    left = [item for kind in ("Pod", "Node") for item in apiserver.client.list("v1", kind)["items"]]
    assert [item for item in left if NAMESPACE in str(item["metadata"])] == []


def test_demo_fails_when_a_step_does_not_happen(apiserver: ApiServer) -> None:
    """With a setting that the operator refuses it ends at once, so no key ever appears."""
    done = run_demo("--cluster", KUBECONFIG=str(apiserver.kubeconfig), GRPC_ETCD_OPERATOR_LEASE_TTL="nonsense")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the operator has ended" in done.stdout
    assert "nonsense" in done.stdout


@pytest.mark.parametrize("kubeconfig", ["", "/nonexistent/kubeconfig"])
def test_demo_on_a_cluster_needs_a_kubeconfig(kubeconfig: str) -> None:
    done = run_demo("--cluster", KUBECONFIG=kubeconfig)
    assert done.returncode == 1
    assert "set it to a kubeconfig file that exists" in done.stderr


class RunningDemo:
    """A demo in the background, with its temporary files where they can be seen."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder / "temporary"
        self.folder.mkdir()
        self.output = folder / "output"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "testbed.demo", *options],
                cwd=ROOT,
                env=os.environ | {"TMPDIR": str(self.folder), "PYTHONUNBUFFERED": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, text: str) -> str:
        wait_until(lambda: text in self.output.read_text() or self.process.poll() is not None, text, DEMO_SECONDS)
        said = self.output.read_text()
        assert text in said, said
        return said

    def interrupt(self) -> int:
        """Press Ctrl-C, and return the exit code once nothing is left of it."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        assert "Traceback" not in self.output.read_text()
        wait_until(lambda: not self.processes(), "its processes have ended")
        assert list(self.folder.iterdir()) == []
        return code

    def processes(self) -> list[str]:
        """Command lines that name its temporary files: etcd, the API server, kubectl."""
        lines = subprocess.run(["ps", "-wweo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
        return [line for line in lines if str(self.folder) in line]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Callable[..., RunningDemo]]:
    with ExitStack() as stack:

        def start(*options: str) -> RunningDemo:
            demo = RunningDemo(tmp_path, *options)
            stack.callback(demo.close)
            return demo

        yield start


@pytest.mark.timeout(3 * DEMO_SECONDS)
def test_demo_stays_up_on_request_and_what_it_tells_to_try_works(start_demo: Callable[..., RunningDemo]) -> None:
    demo = start_demo("--keep")
    said = demo.wait_for("r.close()'")
    assert "calls failed: 0" in said
    block = said.partition("In another terminal, in this folder:\n")[2].replace(
        "watch greeter", "watch greeter --changes 1"
    )
    said_by_commands = demo.folder.parent / "commands"
    with said_by_commands.open("w") as file:
        tried = subprocess.Popen(["bash", "-ec", block], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        assert tried.wait(DEMO_SECONDS) == 0, said_by_commands.read_text()
    except subprocess.TimeoutExpired:
        running = demo.processes()
        tried.kill()
        pytest.fail(f"stuck after:\n{said_by_commands.read_text()}\n{running}\n{demo.output.read_text()}")
    for expected in ("greeter-4", '"greeter-3" deleted', "/jupiter/greeter/providers/grpc://127.", " + 127."):
        assert expected in said_by_commands.read_text()
    assert demo.processes()
    assert demo.interrupt() == 0


def test_demo_that_is_interrupted_leaves_nothing_behind(start_demo: Callable[..., RunningDemo]) -> None:
    demo = start_demo()
    demo.wait_for("kubectl apply")
    assert demo.processes()
    assert demo.interrupt() == INTERRUPTED
