"""`grpc-etcd generate`: GrpcServices for manifests that are there already. It reads files, and asks no server."""

import click

from grpc_etcd.cli.files import UnreadableError, read_documents
from grpc_etcd.cli.printing import Failure, print_documents, print_line
from grpc_etcd.inspect.generation import generate as generate_manifests
from grpc_etcd.layouts.index import LAYOUT_NAMES

HINT = ". Render templates first, as in: helm template . | grpc-etcd generate -f -"
EXAMPLES = """\b
Examples:
  grpc-etcd generate -f k8s/
  helm template . | grpc-etcd generate -f - | kubectl apply --namespace shop -f -
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "-f",
    "--filename",
    "paths",
    required=True,
    multiple=True,
    metavar="FILE|DIRECTORY|-",
    help="Manifests in YAML or JSON, a directory of them, or - for standard input; repeatable.",
)
@click.option("-n", "--namespace", default="", help="Namespace of objects that do not set one.")
@click.option(
    "--layout",
    "layouts",
    multiple=True,
    type=click.Choice(sorted(LAYOUT_NAMES)),
    help="Layout to write in each GrpcService; repeatable. Default: the operator's.",
)
@click.option(
    "--service-ref",
    "by_reference",
    is_flag=True,
    help="Let GrpcServices follow the Services (spec.serviceRef) instead of copying their selectors.",
)
def generate(paths: tuple[str, ...], namespace: str, layouts: tuple[str, ...], *, by_reference: bool) -> None:
    """Print GrpcServices for the gRPC servers that existing manifests run.

    Reads Services, and Deployments and other workloads without a Service.
    A port counts as gRPC if its name or appProtocol says so, or if a gRPC probe uses it.
    Skipped objects are reported on standard error with the reason. Exits with 1 if nothing is generated.
    """
    try:
        documents = [each for path in paths for _, file in read_documents(path) for each in file]
    except UnreadableError as error:
        raise Failure(f"cannot read {error.file}: {error}{HINT}") from error
    made = generate_manifests(documents, namespace, layouts, by_reference=by_reference)
    for what, why in made.left_out.items():
        print_line(f"skipped: {what}: {why}", error=True)
    if not made.manifests:
        raise Failure("no GrpcService generated: no Service or workload has a port that is known to serve gRPC")
    print_documents(made.manifests)
