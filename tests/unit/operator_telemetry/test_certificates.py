"""When certificates run out, read by ourselves and held against what `cryptography` reads of the same files."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.telemetry.certificates import expiries, not_after
from testbed.certificates import Authority

KEY = ec.generate_private_key(ec.SECP256R1())
NEAR, FAR = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC), datetime(2063, 1, 2, 3, 4, 5, tzinfo=UTC)
# RFC 5280: UTCTime until 2049, GeneralizedTime from 2050 on.
ENDS = st.datetimes(datetime(1951, 1, 1), datetime(9999, 12, 31, 23, 59, 59), timezones=st.just(UTC))  # noqa: DTZ001


def certificate(end: datetime, *, is_ca: bool = False, name: str = "etcd") -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(1950, 1, 1, tzinfo=UTC))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .sign(KEY, hashes.SHA256())
    )


def pem(*certificates: x509.Certificate) -> str:
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in certificates)


@given(ENDS, st.text("aé字", min_size=1, max_size=20))
def test_the_end_is_what_cryptography_reads(end: datetime, name: str) -> None:
    made = certificate(end.replace(microsecond=0), name=name)
    assert not_after(made.public_bytes(Encoding.DER)) == made.not_valid_after_utc


@given(st.binary(max_size=200), st.integers(0, 400))
def test_what_is_no_certificate_is_a_value_error(noise: bytes, cut: int) -> None:
    whole = certificate(NEAR).public_bytes(Encoding.DER)
    for data in (noise, whole[:cut] + noise, noise + whole):
        try:
            found = not_after(data)
        except ValueError:
            continue
        assert isinstance(found, datetime)


def test_a_leaf_alone_counts(tmp_path: Path) -> None:
    file = tmp_path / "tls.crt"
    file.write_text(pem(certificate(NEAR)))
    assert list(expiries(file)) == [(str(file), NEAR.timestamp())]


def test_of_several_certificates_the_first_to_run_out_counts_wherever_it_stands(tmp_path: Path) -> None:
    leaf, authority = certificate(NEAR), certificate(FAR, is_ca=True)
    for number, bundle in enumerate(((leaf, authority), (authority, leaf), (authority, certificate(FAR), leaf))):
        file = tmp_path / f"{number}.crt"
        file.write_text("a comment, as openssl writes them\n" + pem(*bundle))
        assert list(expiries(file)) == [(str(file), NEAR.timestamp())]


def test_the_files_of_a_test_authority_count_each_for_itself(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("client")
    found = dict(expiries(issued.ca, issued.cert, None, tmp_path / "absent"))
    read = {
        str(file): min(each.not_valid_after_utc for each in x509.load_pem_x509_certificates(file.read_bytes()))
        for file in (issued.ca, issued.cert)
    }
    assert found == {name: end.timestamp() for name, end in read.items()}


def test_a_broken_block_hides_no_good_one_and_no_certificate_at_all_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "tls.crt"
    broken = "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n"
    file.write_text(broken + pem(certificate(NEAR)).replace("\n", "\r\n"))
    assert list(expiries(file)) == [(str(file), NEAR.timestamp())]
    file.write_text(broken)
    assert list(expiries(file)) == []


def test_one_without_an_end_never_runs_out(tmp_path: Path) -> None:
    end = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    file = tmp_path / "tls.crt"
    file.write_text(pem(certificate(end)))
    ((_, expiry),) = expiries(file)
    assert expiry - NEAR.timestamp() > timedelta(days=300_000).total_seconds()
