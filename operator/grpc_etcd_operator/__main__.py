"""`python -m grpc_etcd_operator`: the same as the command `grpc-etcd-operator`."""

from grpc_etcd_operator.cli import main

main(prog_name="grpc-etcd-operator")
