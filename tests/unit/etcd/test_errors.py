"""What an error of etcd advises, and that handlers written for gRPC's own errors can read it."""

from pathlib import Path

import grpc
import pytest

from grpc_etcd.etcd.credentials import Credentials, read_password
from grpc_etcd.etcd.dialing import read
from grpc_etcd.etcd.errors import (
    AuthFailed,
    DeadlineExceeded,
    EtcdError,
    NotServing,
    PermissionDenied,
    TokenRefused,
    Unavailable,
    UnreadableFile,
    make_error,
)

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("code", "details", "kind", "advice"),
    [
        ("INVALID_ARGUMENT", "etcdserver: user name is empty", TokenRefused, "requires them"),
        ("UNAUTHENTICATED", "etcdserver: invalid auth token", TokenRefused, "--auth-token"),
        ("UNAVAILABLE", "Socket closed", Unavailable, "If it uses TLS"),
        ("UNAVAILABLE", "recvmsg:Connection reset by peer", Unavailable, "If it uses TLS"),
        ("UNAVAILABLE", "Ssl handshake failed: WRONG_VERSION_NUMBER", Unavailable, "remove the CA"),
        ("UNAVAILABLE", "Handshake read failed (Socket closed)", Unavailable, "remove the CA"),
        ("UNAVAILABLE", "UNKNOWN: Failed to create security handshaker.", Unavailable, "is not PEM"),
        ("UNAVAILABLE", "CERTIFICATE_VERIFY_FAILED: self signed", Unavailable, "Set the CA"),
        ("UNAVAILABLE", "certificate required", Unavailable, "client certificate"),
        ("UNAVAILABLE", "Unwrap failed (TSI_DATA_CORRUPTED)", Unavailable, "requires client certificates"),
        ("UNKNOWN", "Stream removed", Unavailable, "broke while the call"),
        ("UNAVAILABLE", "Stream removed (Socket closed)", Unavailable, "broke while the call"),
        ("DEADLINE_EXCEEDED", "Stream removed (Deadline Exceeded)", DeadlineExceeded, "read back"),
        ("UNAVAILABLE", "connection refused", Unavailable, "Check that etcd runs"),
        ("UNAVAILABLE", "errors resolving etcd:2379: [Domain name not found]", Unavailable, "and the DNS server"),
        ("UNAVAILABLE", "DNS resolution failed for etcd:2379", Unavailable, "and the DNS server"),
        ("FAILED_PRECONDITION", "etcdserver: rpc not supported for learner", NotServing, "member promote"),
        ("FAILED_PRECONDITION", "etcdserver: not capable", NotServing, "client URL"),
        ("DATA_LOSS", "etcdserver: corrupt cluster", NotServing, "alarm list"),
        ("UNIMPLEMENTED", "unknown service etcdserverpb.KV", NotServing, "Set the client URLs of etcd's members"),
        ("PERMISSION_DENIED", "etcdserver: permission denied", PermissionDenied, "--prefix=true read PREFIX"),
    ],
)
def test_the_remedy_fits_what_was_said(code: str, details: str, kind: type[EtcdError], advice: str) -> None:
    error = make_error(code, details)
    assert type(error) is kind
    assert advice in error.remedy


def test_a_handler_for_rpc_errors_can_read_one_of_etcd() -> None:
    error = make_error("PERMISSION_DENIED", "etcdserver: permission denied")
    assert error.details() == error.details == "etcdserver: permission denied"
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.code == "PERMISSION_DENIED"
    assert EtcdError("lost").code() is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_an_outage_and_no_wrong_password(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UnreadableFile) as caught:
        read_password(file)
    assert isinstance(caught.value, Unavailable)
    assert not isinstance(caught.value, AuthFailed)
    assert "path" in caught.value.remedy
    with pytest.raises(UnreadableFile):
        Credentials("app", file).log_in()


def test_a_missing_tls_file_names_itself(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="nosuch"):
        read(tmp_path / "nosuch")


def test_pem_may_stand_in_place_of_a_path() -> None:
    assert read(CERTIFICATE) == CERTIFICATE.encode()
