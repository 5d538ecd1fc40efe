"""The operator, which waits for less long than five minutes: `python hasty.py SECONDS run ...`.

For so long it holds the keys of GrpcServices that went with their CRD, once that is back. There is no setting for it.
This runs in a process of its own, so that nothing of it reaches the tests.
"""

import sys

from grpc_etcd_operator.cli import main
from grpc_etcd_operator.controller import resync

resync.CRD_GRACE_SECONDS = float(sys.argv.pop(1))

if __name__ == "__main__":
    main(prog_name="grpc-etcd-operator")
