# The operator's image; it also holds the `grpc-etcd` command. Build it with `make image`.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
# pip reads the pins for what it builds with from one of these two, depending on its version.
ENV PIP_CONSTRAINT=/src/constraints.txt PIP_BUILD_CONSTRAINT=/src/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY constraints.txt ./
# No pip inside: what the image runs cannot install anything.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/grpc-etcd
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY operator operator
COPY resolver resolver
RUN /build/bin/pip wheel --no-deps --wheel-dir /wheels . \
 && /build/bin/pip --python /opt/grpc-etcd/bin/python install --no-compile "$(echo /wheels/*.whl)[operator,cli]"
# `kubernetes` is 75 MB of source, of which the operator uses the part that finds and logs in to the API server. Its
# asyncio copy of everything goes, and its models, which are loaded one by one when used, get no byte code. All else gets
# it now, as nothing can be written at run time. Typing stubs and C sources serve nobody here.
RUN rm -rf /opt/grpc-etcd/lib/python3*/site-packages/kubernetes/aio \
 && find /opt/grpc-etcd -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.pyi' | xargs rm -f \
 && /opt/grpc-etcd/bin/python -m compileall -q --invalidation-mode unchecked-hash -x 'kubernetes/client/(models|api)/' \
      /opt/grpc-etcd/lib \
 && /opt/grpc-etcd/bin/python -c 'import grpc_etcd_operator.app' \
 && /opt/grpc-etcd/bin/grpc-etcd-operator --help > /dev/null

FROM ${PYTHON_IMAGE}
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="grpc-etcd operator" \
      org.opencontainers.image.description="Keeps a gRPC service registry in etcd true to the readiness of Pods" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/grpc-etcd /opt/grpc-etcd
ENV PATH=/opt/grpc-etcd/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
# A number, so that a kubelet can check runAsNonRoot without reading /etc/passwd.
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["grpc-etcd-operator"]
CMD ["run"]
