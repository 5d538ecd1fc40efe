"""A certificate authority for tests: server and client certificates, keys for service account tokens."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

LOOPBACK_NAMES = ("127.0.0.1", "localhost")


@dataclass(frozen=True, slots=True)
class Certificate:
    """The files of one certificate and of the authority that signed it, all PEM."""

    ca: Path
    cert: Path
    key: Path


class Authority:
    """Signs certificates and writes them below one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(
        self, name: str, hosts: tuple[str, ...] = LOOPBACK_NAMES, not_after: datetime | None = None
    ) -> Certificate:
        """Sign a certificate for hosts, with `name` as common name; an earlier one of that name is replaced."""
        signed = self._authority.issue_cert(*hosts, common_name=name, not_after=not_after)
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        signed.private_key_pem.write_to_path(key)
        with cert.open("wb") as file:
            file.writelines(blob.bytes() for blob in signed.cert_chain_pems)
        return Certificate(self.ca, cert, key)


def write_signing_key(private: Path, public: Path) -> None:
    """Write a key pair with which an API server signs and checks service account tokens."""
    key = ec.generate_private_key(ec.SECP256R1())
    plain = serialization.NoEncryption()
    encoding = serialization.Encoding.PEM
    private.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo))
