"""An API server is trusted if the configured CA has signed its certificate, whatever extensions that CA lacks."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from kubernetes.client import Configuration

from grpc_etcd_operator.kube.connecting import _make_context

NOW = datetime.now(UTC)
HOST = "kubernetes.default.svc"


def certify(name: str, key: ec.EllipticCurvePrivateKey, issuer: str) -> x509.CertificateBuilder:
    """Begin a certificate that has no extension yet."""
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
    )


def make_plain_authority(folder: Path) -> tuple[Path, Path]:
    """Write a CA with nothing but basic constraints, as managed clusters have, and a server's chain with its key."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    ca = certify("kubernetes", ca_key, "kubernetes").add_extension(constraints, critical=True)
    names = x509.SubjectAlternativeName([x509.DNSName(HOST)])
    server = certify("server", key, "kubernetes").add_extension(names, critical=False).sign(ca_key, hashes.SHA256())
    authority, chain = folder / "ca.crt", folder / "server.pem"
    authority.write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain.write_bytes(server.public_bytes(Encoding.PEM) + private)
    return authority, chain


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """Shake hands in memory, each side in turn; raises what the client or the server has against it."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=HOST),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):  # more than TLS 1.3 needs
        sides = [side for side in sides if is_open(side)]
    assert not sides


def is_open(side: ssl.SSLObject) -> bool:
    """Go on with a handshake; return whether it waits for the other side."""
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return True
    return False


def serve(chain: Path) -> ssl.SSLContext:
    """Make the server's side."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context


def test_a_ca_without_key_identifiers_and_key_usage_is_trusted(tmp_path: Path) -> None:
    """Python 3.13 and newer refuse it by default; kubectl and Go never did."""
    authority, chain = make_plain_authority(tmp_path)
    configuration = Configuration()
    configuration.ssl_ca_cert = str(authority)
    context = _make_context(configuration)
    shake_hands(context, serve(chain))
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT


def test_a_stranger_with_such_a_ca_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    configuration = Configuration()
    configuration.ssl_ca_cert = str(make_plain_authority(tmp_path / "ours")[0])
    _, chain = make_plain_authority(tmp_path / "theirs")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(_make_context(configuration), serve(chain))
