"""Settings: precedence, several registries, and every fault named with its remedy in one go."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from grpc_etcd_operator.cli import main
from grpc_etcd_operator.settings import SETTINGS, SettingsError, load_settings, reference

ENDPOINTS = {"etcd-endpoints": ["etcd:2379"]}


def faults_of(flags: dict[str, list[str]], environ: dict[str, str] | None = None, config: str = "") -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, environ=environ or {}, config=config)
    return "\n".join(caught.value.faults)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


def test_only_the_endpoints_are_required() -> None:
    settings = load_settings(ENDPOINTS, environ={})
    assert [registry.name for registry in settings.registries] == ["default"]
    assert settings.registries[0].endpoints == ("etcd:2379",)
    assert (settings.lease_ttl_seconds, settings.namespaces, settings.dry_run) == (300, (), False)
    assert "--etcd-endpoints is missing" in faults_of({})


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    config = written(tmp_path, "leaseTtl: 30\nleaderTtl: 5\nmetricsPort: 1\nregistries: {default: {endpoints: 'a:1'}}")
    environ = {
        "GRPC_ETCD_OPERATOR_LEASE_TTL": "60",
        "GRPC_ETCD_OPERATOR_LEADER_TTL": "6",
        "GRPC_ETCD_OPERATOR_CONFIG": config,
    }
    settings = load_settings({"lease-ttl": ["90"]}, environ=environ)
    assert (settings.lease_ttl_seconds, settings.leader_ttl_seconds, settings.metrics_port) == (90, 6, 1)


def test_several_registries_come_from_the_file(tmp_path: Path) -> None:
    config = written(tmp_path, "registries:\n  default: {endpoints: 'a:1'}\n  far: {endpoints: ['x:1', 'y:2']}\n")
    near, far = load_settings(ENDPOINTS, environ={}, config=config).registries
    assert (near.name, near.endpoints) == ("default", ("etcd:2379",))
    assert (far.name, far.endpoints) == ("far", ("x:1", "y:2"))


def test_flags_do_not_invent_a_default_registry_beside_named_ones(tmp_path: Path) -> None:
    config = written(tmp_path, "registries: {far: {endpoints: 'x:1'}}")
    assert [r.name for r in load_settings({}, environ={}, config=config).registries] == ["far"]


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    config = written(tmp_path, "leasTtl: 30\nregistries: {far: {endpoint: 'x:1', user: me}}")
    text = faults_of(
        {"namespace": ["Shop"], "etcd-endpoints": ["nowhere"]},
        {
            "GRPC_ETCD_OPERATOR_PREFX": "a",
            "GRPC_ETCD_OPERATOR_DRY_RUN": "perhaps",
            "GRPC_ETCD_OPERATOR_CERT": "/no/such/file",
        },
        config,
    )
    for expected in (
        "leasTtl: there is no such setting; did you mean leaseTtl?",
        "registries.far.endpoint: there is no such setting; did you mean endpoints?",
        "GRPC_ETCD_OPERATOR_PREFX: there is no such setting; did you mean GRPC_ETCD_OPERATOR_PREFIX?",
        "--namespace=Shop: it must be a namespace's name",
        "'nowhere' is not of the form host:port",
        "GRPC_ETCD_OPERATOR_DRY_RUN=perhaps: it must be true or false",
        "GRPC_ETCD_OPERATOR_CERT=/no/such/file: there is no such file",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"etcd-user": ["me"]}, "etcd-user is given without etcd-password-file"),
        ({"etcd-cert": [__file__]}, "etcd-cert is given without etcd-key"),
        ({"etcd-endpoints": ["http://a:1,https://b:2"]}, "mixes http and https"),
        ({"etcd-endpoints": ["http://a:1"], "etcd-ca": [__file__]}, "says http:// but TLS files are given"),
        ({"etcd-endpoints": ["a:1"], "etcd-server-name": ["etcd"]}, "etcd-server-name is given but TLS is off"),
        ({"etcd-endpoints": ["a:1,b:65536"]}, "'b:65536' is not of the form host:port"),
        ({"etcd-endpoints": ["a:0"]}, "'a:0' is not of the form host:port"),
        ({"etcd-endpoints": ["https://a:1"], "etcd-server-name": ["a b"]}, "a DNS name or an IP address"),
    ],
)
def test_contradictions_are_refused(flags: dict[str, list[str]], expected: str) -> None:
    assert expected in faults_of(ENDPOINTS | flags)


def test_variables_of_clients_and_of_service_links_are_ignored() -> None:
    links = ["OPERATOR_SERVICE_HOST", "OPERATOR_PORT_2379_TCP_ADDR", "OPERATOR_METRICS_SERVICE_PORT_HTTP"]
    clients = ["ENDPOINTS", "PREFIX", "USER", "LAYOUTS", "LEASE_TTL", "SERVICE_HOST"]
    environ = {f"GRPC_ETCD_{name}": "tcp://10.0.0.1:2379" for name in (*links, *clients)}
    settings = load_settings(ENDPOINTS, environ=environ)
    assert settings == load_settings(ENDPOINTS, environ={})


def test_the_file_is_named_when_it_cannot_be_read(tmp_path: Path) -> None:
    assert "--config=/no/such: the file cannot be read" in faults_of(ENDPOINTS, config="/no/such")
    assert "must hold a mapping" in faults_of(ENDPOINTS, config=written(tmp_path, "- 1"))


def test_the_command_line_exits_with_2_and_names_the_setting() -> None:
    result = CliRunner().invoke(main, ["run", "--lease-ttl", "5"])
    assert result.exit_code == 2
    assert "--lease-ttl=5: it must be a whole number from 10 to 3600" in result.output
    assert CliRunner().invoke(main, ["run", "--no-such-flag"]).exit_code == 2


def test_every_setting_stands_in_the_help_and_in_the_reference() -> None:
    text = CliRunner().invoke(main, ["run", "--help"], terminal_width=400).output
    for setting in SETTINGS:
        assert setting.flag in text
        assert f"[{setting.variable}]" in text
        assert f"`{setting.variable}`" in reference()


def test_https_endpoints_need_no_files_and_take_a_server_name(tmp_path: Path) -> None:
    """Public CAs are the system's; etcdctl's way to write endpoints, with a slash at the end, is taken too."""
    given = {"etcd-endpoints": ["https://a:1,https://b:2/"], "etcd-server-name": ["etcd.example"]}
    (registry,) = load_settings(given, environ={}).registries
    assert (registry.endpoints, registry.server_name) == (("https://a:1", "https://b:2/"), "etcd.example")
    config = written(tmp_path, "registries: {default: {endpoints: 'https://a:1', serverName: 10.0.0.1}}")
    (registry,) = load_settings({}, config=config, environ={}).registries
    assert registry.server_name == "10.0.0.1"
