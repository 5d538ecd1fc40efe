"""Where the command `grpc-etcd` begins: with the signals, before anything that takes long to import."""

from grpc_etcd_entry.signals import end_on_signals


def main() -> None:
    """Run the command line `grpc-etcd`."""
    end_on_signals()
    from grpc_etcd.cli import main as run  # noqa: PLC0415  signals come first

    run()


def complete_plugin() -> None:
    """Complete the command line as a plugin of kubectl."""
    end_on_signals()
    from grpc_etcd.cli import complete_plugin as complete  # noqa: PLC0415  as above

    complete()
