#!/usr/bin/env bash
# Build the operator's image with docker, podman or buildah, whichever works here first.
#   IMAGE=name:tag         what to call it (default grpc-etcd-operator:VERSION)
#   PYTHON_IMAGE=name:tag  the base (default: the Dockerfile's own)
#   CONTAINER_TOOL=...     the tool, with options where it needs some, e.g. "buildah --root /somewhere"
#   BUILD_OPTIONS=...      options of the tool's build command, as all further arguments are
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
image=${IMAGE:-grpc-etcd-operator:$version}

works() { command -v "$1" >/dev/null && "$@" >/dev/null 2>&1; }
choose_tool() {
  if works docker info; then echo docker
  elif works podman info; then echo podman
  elif works buildah info; then echo buildah
  else
    echo "make image needs docker, podman or buildah, and none works here; on Debian: apt-get install buildah" >&2
    return 1
  fi
}
tool=${CONTAINER_TOOL:-$(choose_tool)}

options=(--build-arg "VERSION=$version" --build-arg "REVISION=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)")
[ -z "${PYTHON_IMAGE:-}" ] || options+=(--build-arg "PYTHON_IMAGE=$PYTHON_IMAGE")
# shellcheck disable=SC2086  # the tool may carry options of its own
if ! $tool build "${options[@]}" --tag "$image" ${BUILD_OPTIONS:-} "$@" .; then
  echo "docs/operations.md, \"Install\", says what to set where Docker Hub or PyPI cannot be reached" >&2
  exit 1
fi
echo "built $image with ${tool%% *}"
