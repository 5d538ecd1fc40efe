"""Where the operator's commands begin, and `python -m grpc_etcd_operator`: signals first, then what takes long."""

from grpc_etcd_entry.signals import end_on_signals

PROGRAM = "grpc-etcd-operator"


def main() -> None:
    """Run the command line `grpc-etcd-operator`."""
    end_on_signals()
    from grpc_etcd_operator.cli import main as run  # noqa: PLC0415  signals come first

    run(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
