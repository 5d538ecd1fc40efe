"""The command line `grpc-etcd`: look at a registry, register in it, find what is wrong with it, serve it to others.

Needs the extra `cli` (click, rich, PyYAML); without it the command says so. Nothing here is imported by the library.
"""

import importlib.util
import sys

NEEDED = ("click", "rich", "yaml")


def main() -> None:
    """Run the command line."""
    _require_extra()
    # Imported here: applications that install no extra must be able to import this package.
    from grpc_etcd.cli.commands import run  # noqa: PLC0415

    run()


def complete_plugin() -> None:
    """Complete the command line as a plugin of kubectl."""
    _require_extra()
    from grpc_etcd.cli.completing import complete_plugin as complete  # noqa: PLC0415  as above

    complete()


def _require_extra() -> None:
    """End the program, with what to install, where the extra is not there."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        sys.stderr.write(
            f"grpc-etcd: the command line needs {', '.join(missing)}; install grpc-etcd with its extra `cli`, "
            "as in: pip install '.[cli]' (in a checkout)\n"
        )
        sys.exit(1)
