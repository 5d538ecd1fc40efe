"""Build and run the operator's image on a machine without a container engine or an image registry.

The base comes from Debian's packages (mmdebstrap), the build from buildah, and runc runs the result as Kubernetes
would: read-only root, no capabilities, the image's own user. All of it needs root on Debian; where that is missing,
`why_impossible()` says so. The base and the store stay in the test bed's cache.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.build import ROOT, cache_folder, locked
from testbed.process import Process

TOOLS = ("buildah", "mmdebstrap", "runc")
BASE = "localhost/python:3.13-slim"
IMAGE = "localhost/grpc-etcd-operator:test"
EXAMPLE = "localhost/greeter:test"
EXAMPLE_FILE = "examples/greeter/Dockerfile"
SUITE = "trixie"  # the Debian release that has Python 3.13
BASE_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
# As in the official image: pip may install, `python` exists, and nothing of the machine that made it is left inside.
BASE_HOOKS = (
    'rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED "$1"/etc/resolv.conf "$1"/etc/hostname',
    'ln -s ../../bin/python3 "$1"/usr/local/bin/python',
)
UNNEEDED_PATHS = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
# How this machine reaches its package registries; lent to the build, never part of the image.
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
PIP_CONFIGURATIONS = (Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf")


class ImageError(Exception):
    """A container tool refused; the message holds its words."""


def why_impossible() -> str:
    """Say why this machine cannot build and run images; empty where it can. As root it installs Debian's tools."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if os.geteuid() != 0:
        return "building and running images without a container engine needs root"
    if missing and shutil.which("apt-get"):
        print(f"installing {', '.join(missing)}", file=sys.stderr, flush=True)
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], env=quiet, check=False, capture_output=True)
        install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing]
        subprocess.run(install, env=quiet, check=False, capture_output=True)
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    return f"these Debian packages are missing and could not be installed: {', '.join(missing)}" if missing else ""


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> str:
    """Run a tool to its end and return its output; raise ImageError with its last words."""
    answer = subprocess.run(
        command, env=os.environ | (environment or {}), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if answer.returncode:
        said = "\n".join((answer.stdout + answer.stderr).splitlines()[-20:])
        raise ImageError(f"{' '.join(map(str, command))} failed with {answer.returncode}:\n{said}")
    return answer.stdout.strip()


def folder() -> Path:
    """Where base, store and mounts are."""
    path = cache_folder() / "images"
    path.mkdir(parents=True, exist_ok=True)
    return path


def buildah() -> list[str]:
    """The command, with a store of the test bed's own."""
    store = folder() / "store"
    return ["buildah", "--root", str(store), "--runroot", str(folder() / "run"), "--storage-driver", "overlay"]


def has_image(name: str) -> bool:
    """Whether the store holds it."""
    return bool(name in run([*buildah(), "images", "--format", "{{.Name}}:{{.Tag}}"]).split())


def make_base() -> None:
    """Make the base image from Debian's packages, once."""
    with locked(folder() / ".lock"):
        tar = folder() / f"{SUITE}.tar"
        if not tar.exists():
            print("making a base image from Debian's packages (once)", file=sys.stderr, flush=True)
            partial = tar.with_suffix(".partial.tar")
            run(["mmdebstrap", *base_options(), SUITE, partial, mirror()])
            partial.rename(tar)
        if not has_image(BASE):
            container = run([*buildah(), "from", "--pull-never", "scratch"])
            run([*buildah(), "add", "-q", container, tar, "/"])
            run([*buildah(), "config", "--cmd", "python3", "--env", "LANG=C.UTF-8", container])
            path = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
            run([*buildah(), "config", "--env", f"PATH={path}", container])
            run([*buildah(), "commit", "-q", "--rm", container, BASE])


def base_options() -> list[str]:
    """What the base holds and lacks."""
    hooks = [f"--customize-hook={hook}" for hook in BASE_HOOKS]
    without = [f"--dpkgopt=path-exclude={path}" for path in UNNEEDED_PATHS]
    return ["--variant=minbase", f"--include={BASE_PACKAGES}", *without, *hooks]


def mirror() -> str:
    """The Debian mirror that this machine is set up to use."""
    sites = run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]).split()
    return next(site for site in sites if "security" not in site)


def build(image: str = IMAGE) -> str:
    """Build the image with the repository's own image.sh and return its name; layers that did not change are reused."""
    make_base()
    environment = {"IMAGE": image, "PYTHON_IMAGE": BASE, "CONTAINER_TOOL": " ".join(buildah())}
    with locked(folder() / ".lock"):
        run([ROOT / "testbed/image.sh", *build_options()], environment)
    return image


def build_example(image: str = EXAMPLE) -> str:
    """Build the image of the greeter example, as its README says, and return its name."""
    make_base()
    files = ["--file", EXAMPLE_FILE, "--ignorefile", f"{EXAMPLE_FILE}.dockerignore"]
    with locked(folder() / ".lock"):
        base = ["--build-arg", f"PYTHON_IMAGE={BASE}"]
        run([*buildah(), "build", *base, *files, *build_options(), "--tag", image, "."])
    return image


def build_options() -> list[str]:
    """How this machine builds: without an image registry, with its own way to its package registries."""
    lent = [f"{CA_BUNDLE}:{CA_BUNDLE}:ro"] if CA_BUNDLE.exists() else []
    lent += [f"{path}:/etc/pip.conf:ro" for path in PIP_CONFIGURATIONS if path.exists()][:1]
    options = ["--isolation", "chroot", "--network", "host", "--pull-never", "--layers", "--format", "docker"]
    return options + [option for volume in lent for option in ("--volume", volume)]


@contextmanager
def mounted(image: str) -> Iterator[Path]:
    """Show an image's files in a folder, for as long as the context lasts."""
    container = run([*buildah(), "from", "--pull-never", image])
    try:
        yield Path(run([*buildah(), "mount", container]))
    finally:
        run([*buildah(), "rm", container])


def size_bytes(image: str) -> int:
    """What the image's files take, unpacked."""
    with mounted(image) as root:
        return int(run(["du", "--summarize", "--bytes", root]).split()[0])


def configuration(image: str) -> Mapping[str, object]:
    """Give what the image says of itself: user, command, environment, labels."""
    found: Mapping[str, object] = json.loads(run([*buildah(), "inspect", "--type", "image", image]))["Docker"]["config"]
    return found


@dataclass(frozen=True, slots=True)
class Container:
    """A container's files and its process; remove() after use."""

    name: str
    process: Process

    @classmethod
    def create(
        cls,
        image: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        files: Sequence[Path],
        where: Path,
        *,
        user: tuple[int, int] | None = None,
    ) -> "Container":
        """Unpack an image and prepare to run it as a Pod with a strict security context; `files` are lent read-only.

        `user` and its group take the place of the image's own.
        """
        name = run([*buildah(), "from", "--pull-never", image])
        root = run([*buildah(), "mount", name])
        where.mkdir(parents=True, exist_ok=True)
        config = dict(configuration(image)) | ({"User": f"{user[0]}:{user[1]}"} if user else {})
        spec = runtime_spec(config, root, arguments, environment, files)
        (where / "config.json").write_text(json.dumps(spec, indent=2))
        command = ["runc", "run", "--bundle", str(where), name]
        return cls(name, Process(f"container {name}", command, where / "log"))

    def remove(self) -> None:
        """End it and throw its files away."""
        self.process.kill()
        subprocess.run(["runc", "delete", "--force", self.name], check=False, capture_output=True)
        run([*buildah(), "rm", self.name])


def runtime_spec(
    config: Mapping[str, object],
    root: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    files: Sequence[Path],
) -> dict[str, object]:
    """The OCI runtime's description: the image's own command and user, and what the strictest Pod security allows."""
    user, _, group = str(config["User"]).partition(":")
    command = [*list_of(config["Entrypoint"]), *(arguments or list_of(config["Cmd"]))]
    binds = [
        {"destination": str(path), "source": str(path), "type": "bind", "options": ["bind", "ro"]} for path in files
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": int(user), "gid": int(group or user)},
            "args": command,
            "env": [*list_of(config["Env"]), *(f"{key}={value}" for key, value in environment.items())],
            "cwd": str(config.get("WorkingDir") or "/"),
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": root, "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},  # noqa: S108
            *binds,
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "mount")]},
    }


def list_of(value: object) -> list[str]:
    """A list of strings of an image's configuration, which may be absent."""
    return [str(part) for part in value] if isinstance(value, list) else []
