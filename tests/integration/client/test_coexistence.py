"""Everything handed out is gRPC's own: interceptors, TLS, compression, credentials, streams, connectivity, tracing."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import grpc_etcd
from testbed.certificates import Authority
from testbed.conditions import until, wait_until
from testbed.greeter import METHOD, decode_text, encode_text, say_hello

from .conftest import SERVICE, World, answers, follows


class Tagging(grpc.UnaryUnaryClientInterceptor):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        self.seen.append(client_call_details.method)
        return continuation(client_call_details, request)


def test_interceptors(world: World) -> None:
    server = world.serve(1)[0]
    tagging = Tagging()
    channel = grpc.intercept_channel(world.channel(world.registry()), tagging)
    assert say_hello(channel)("x", timeout=30, wait_for_ready=True) == server.address
    assert tagging.seen == [METHOD]


def test_connectivity_and_ready_futures(world: World) -> None:
    channel = world.channel(world.registry())
    states: list[grpc.ChannelConnectivity] = []
    ready = threading.Event()

    def notice(state: grpc.ChannelConnectivity) -> None:
        states.append(state)
        if state is grpc.ChannelConnectivity.READY:
            ready.set()

    channel.subscribe(notice, try_to_connect=True)
    world.serve(1)
    grpc.channel_ready_future(channel).result(timeout=60)
    assert ready.wait(60)
    assert states[0] is grpc.ChannelConnectivity.IDLE
    channel.unsubscribe(notice)


STREAMS = "test.Streams"


@pytest.fixture
def streaming(world: World) -> Iterator[str]:
    """A server with one method of each streaming kind."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    handlers: dict[str, Any] = {
        "Many": grpc.unary_stream_rpc_method_handler(lambda request, _: (request for _ in range(5))),
        "Join": grpc.stream_unary_rpc_method_handler(lambda requests, _: b"".join(requests)),
        "Echo": grpc.stream_stream_rpc_method_handler(lambda requests, _: requests),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(STREAMS, handlers),))
    address = f"127.0.8.1:{server.add_insecure_port('127.0.8.1:0')}"
    server.start()
    world.put(address)
    yield address
    server.stop(None).wait()


@pytest.mark.usefixtures("streaming")
def test_all_kinds_of_streams_with_compression(world: World) -> None:
    registry = world.registry()
    registry.configure(SERVICE, grpc_etcd.Policy(timeout_seconds=30))
    registry.wait_for_endpoints(SERVICE, 60)
    channel = world.channel(registry, compression=grpc.Compression.Gzip)
    body = b"x" * 10_000
    many: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{STREAMS}/Many")
    join: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(f"/{STREAMS}/Join")
    echo: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{STREAMS}/Echo")
    assert list(many(body, wait_for_ready=True, timeout=60)) == [body] * 5
    assert join(iter([b"a", b"b"])) == b"ab"
    assert join(request_iterator=iter([b"a", b"b"])) == b"ab"
    assert join.with_call(request_iterator=iter([b"a", b"b"]))[0] == b"ab"
    assert join.future(request_iterator=iter([b"a", b"b"])).result() == b"ab"
    assert list(echo(iter([b"a", b"b"]), timeout=60)) == [b"a", b"b"]


@pytest.mark.usefixtures("streaming")
async def test_all_kinds_of_aio_streams(world: World) -> None:
    registry = world.registry()
    async with registry.aio.insecure_channel(SERVICE, compression=grpc.Compression.Gzip) as channel:
        await channel.channel_ready()
        many: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{STREAMS}/Many")
        assert [each async for each in many(b"x", timeout=60)] == [b"x"] * 5
        join: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(f"/{STREAMS}/Join")
        assert await join(iter([b"a", b"b"]), timeout=60) == b"ab"
        assert await join(request_iterator=iter([b"a", b"b"]), timeout=60) == b"ab"
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{STREAMS}/Echo")
        echo = method(timeout=60)
        await echo.write(b"a")
        assert await echo.read() == b"a"
        await echo.done_writing()


@pytest.mark.usefixtures("streaming")
async def test_requests_are_written_one_by_one_from_the_first_call_on(world: World) -> None:
    """As grpc.aio has it: a call that is given no iterator takes its requests by `write`."""
    registry = world.registry()
    async with registry.aio.insecure_channel(SERVICE) as channel:
        join: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(f"/{STREAMS}/Join")
        for _ in range(3):  # the first one waits for the registry's timeout, the others know it
            call = join()
            await call.write(b"a")
            await call.write(b"b")
            await call.done_writing()
            assert await call == b"ab"


class Token(grpc.AuthMetadataPlugin):
    def __call__(self, _: grpc.AuthMetadataContext, callback: Any) -> None:
        callback((("x-token", "secret"),), None)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_tls_checks_the_services_name_and_carries_call_credentials(world: World, authority: Authority) -> None:
    certificate = authority.issue("greeter", (SERVICE,))
    credentials = grpc.ssl_server_credentials([(certificate.key.read_bytes(), certificate.cert.read_bytes())])
    server = world.greeter(credentials=credentials)
    world.put(server.address)
    world.put(server.address, "other")
    registry = world.registry(name="tls")
    trust = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    token = grpc.metadata_call_credentials(Token())
    with registry.secure_channel(SERVICE, grpc.composite_channel_credentials(trust, token)) as channel:
        assert set(answers(channel, 3)) == {server.address}
        hello = channel.unary_unary(METHOD, encode_text, decode_text)
        assert hello("x", timeout=30, credentials=token) == server.address
    with registry.secure_channel("other", trust) as wrong, pytest.raises(grpc.RpcError) as failure:
        say_hello(wrong)("x", timeout=30)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


class AioTagging(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self) -> None:
        self.seen: list[object] = []

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        self.seen.append(client_call_details.method)
        return await continuation(client_call_details, request)


async def test_aio_interceptors(world: World) -> None:
    server = world.serve(1)[0]
    tagging = AioTagging()
    async with world.registry().aio.insecure_channel(SERVICE, interceptors=[tagging]) as channel:
        assert await say_hello(channel)("x", timeout=30, wait_for_ready=True) == server.address
    assert [each.decode() if isinstance(each, bytes) else each for each in tagging.seen] == [METHOD]


async def test_aio_tls_and_call_credentials(world: World, authority: Authority) -> None:
    certificate = authority.issue("greeter", (SERVICE,))
    credentials = grpc.ssl_server_credentials([(certificate.key.read_bytes(), certificate.cert.read_bytes())])
    server = world.greeter(credentials=credentials)
    world.put(server.address)
    trust = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    token = grpc.metadata_call_credentials(Token())
    async with world.registry().aio.secure_channel(SERVICE, trust) as channel:
        hello = channel.unary_unary(METHOD, encode_text, decode_text)
        assert await hello("x", timeout=30, wait_for_ready=True, credentials=token) == server.address


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Where all spans go: OpenTelemetry takes one provider in the life of a process."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    """What both instrumentations of gRPC's clients record."""
    instrumentors = (GrpcInstrumentorClient(), GrpcAioInstrumentorClient())  # type: ignore[no-untyped-call]  # none is typed
    exporter.clear()
    for each in instrumentors:
        each.instrument()
    yield exporter
    for each in instrumentors:
        each.uninstrument()


def names(exporter: InMemorySpanExporter) -> list[str]:
    """Name the spans of the program's own calls; those to etcd are traced too, being gRPC calls."""
    found = (span.name.lstrip("/") for span in exporter.get_finished_spans())
    return [name for name in found if not name.startswith("etcdserverpb.")]


def test_opentelemetry_makes_one_span_for_each_call(world: World, spans: InMemorySpanExporter) -> None:
    server = world.serve(1)[0]
    channel = world.channel(world.registry())
    follows(channel, [server])
    spans.clear()
    assert sum(answers(channel, 7).values()) == 7
    wait_until(lambda: names(spans) == [METHOD.lstrip("/")] * 7, "a span for each call, which ends after it")


async def test_opentelemetry_traces_aio_calls(world: World, spans: InMemorySpanExporter) -> None:
    server = world.serve(1)[0]
    async with world.registry().aio.insecure_channel(SERVICE) as channel:
        assert await say_hello(channel)("x", timeout=30, wait_for_ready=True) == server.address
    await until(lambda: names(spans) == [METHOD.lstrip("/")])
