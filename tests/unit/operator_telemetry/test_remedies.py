"""What an admin is told to look at when a registry cannot be used."""

from pathlib import Path

import pytest

from grpc_etcd.etcd.errors import (
    AuthFailed,
    EtcdError,
    NoLeader,
    NoSpace,
    PermissionDenied,
    TokenRefused,
    Unavailable,
)
from grpc_etcd_operator.settings import RegistrySettings
from grpc_etcd_operator.telemetry.remedies import remedy

PLAIN = RegistrySettings(name="default", endpoints=("etcd:2379",))
SECURE = RegistrySettings(name="default", endpoints=("etcd:2379",), ca=Path("ca.crt"))
OTHER = RegistrySettings(name="dr", endpoints=("etcd:2379",), ca=Path("ca.crt"))
UNKNOWN_CA = Unavailable("Ssl handshake failed: SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED", "UNAVAILABLE")
REFUSED = Unavailable("connection refused", "UNAVAILABLE")


@pytest.mark.parametrize(
    ("error", "registry", "named"),
    [
        (UNKNOWN_CA, SECURE, "--etcd-ca (in the chart etcd.tls.secretName and etcd.tls.caKey)"),
        (UNKNOWN_CA, OTHER, "registries.dr.ca (in the chart registries.dr.tls.secretName and registries.dr.tls.caKey)"),
        (
            Unavailable("alert certificate required"),
            SECURE,
            "--etcd-cert and --etcd-key (in the chart etcd.tls",
        ),
        (
            Unavailable("Unwrap failed (TSI_DATA_CORRUPTED)"),
            SECURE,
            "--etcd-cert and --etcd-key (in the chart etcd.tls",
        ),
        *(
            (
                Unavailable(f"CERTIFICATE_VERIFY_FAILED: {words}"),
                SECURE,
                "--etcd-endpoints and --etcd-server-name (in the chart etcd.endpoints and etcd.tls.serverName)",
            )
            for words in ("Hostname Verification Check failed.", "Peer name x is not in peer certificate")
        ),
        (REFUSED, SECURE, "--etcd-endpoints (in the chart etcd.endpoints)"),
        (REFUSED, PLAIN, "--etcd-endpoints and --etcd-ca (in the chart etcd.endpoints, etcd.tls.secretName and"),
        (
            AuthFailed("authentication failed"),
            PLAIN,
            "--etcd-user and --etcd-password-file (in the chart",
        ),
        (TokenRefused("user name is empty"), PLAIN, "etcd.auth.user, etcd.auth.secretName and etcd.auth.passwordKey"),
        (PermissionDenied("permission denied"), PLAIN, "--etcd-user (in the chart etcd.auth.user)"),
    ],
)
def test_an_error_names_the_settings_that_it_is_about(error: EtcdError, registry: RegistrySettings, named: str) -> None:
    said = remedy(error, registry)
    assert said.startswith(error.remedy)
    assert named in said


@pytest.mark.parametrize("error", [NoLeader("no leader"), NoSpace("database space exceeded")])
def test_what_is_etcds_own_affair_names_no_setting(error: EtcdError) -> None:
    assert remedy(error, PLAIN) == error.remedy
