"""What an operator can get wrong is told before anything starts."""

import pickle
import socket
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.rayserve.deployment import build
from service.rayserve.process import run
from service.settings import Settings, settings_from_arguments
from tests.support.served import free_port


def test_an_argument_beats_the_environment_beats_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().http_port == 8000
    monkeypatch.setenv("TOPK_HTTP_PORT", "8001")
    assert Settings().http_port == 8001
    assert Settings(http_port=8002).http_port == 8002


def test_an_unknown_variable_or_field_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="htp_port"):
        Settings(htp_port=1)  # type: ignore[call-arg]
    monkeypatch.setenv("TOPK_HTP_PORT", "1")
    with pytest.raises(ValidationError, match="TOPK_HTP_PORT is not a setting"):
        Settings()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_without_a_key_only_this_machine_is_served(host: str) -> None:
    with pytest.raises(ValidationError, match="no API key"):
        Settings(host=host)
    assert Settings(host=host, api_keys="a-long-key").all_api_keys() == ("a-long-key",)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_a_loopback_host_needs_no_key(host: str) -> None:
    assert Settings(host=host).all_api_keys() == ()


def test_an_application_for_a_cluster_needs_a_key_unless_it_names_a_loopback_host() -> None:
    with pytest.raises(ValidationError, match="no API key"):
        settings_from_arguments({})
    assert settings_from_arguments({"host": "127.0.0.1"}).is_loopback
    assert build({"api_keys": "a-long-key", "num_gpus": 0}) is not None


def test_keys_come_from_the_environment_and_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# comment\nkey-number-3\n")
    monkeypatch.setenv("TOPK_API_KEYS", "key-number-1, key-number-2")
    settings = Settings(api_key_file=file)
    assert settings.all_api_keys() == ("key-number-1", "key-number-2", "key-number-3")
    assert "key-number-1" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "contains no key"), ("short\n", "shorter than 8"), ("key number\x07\n", "not printable ASCII")],
)
def test_a_useless_key_file_is_an_error(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ValidationError, match=says):
        Settings(api_key_file=file)
    with pytest.raises(ValidationError, match="cannot be read"):
        Settings(api_key_file=tmp_path / "nowhere")


def test_one_port_cannot_serve_both() -> None:
    with pytest.raises(ValidationError, match="http_port and grpc_port are both 9000"):
        Settings(http_port=9000, grpc_port=9000)


def test_engine_sizes_that_do_not_fit_are_told_at_the_start() -> None:
    with pytest.raises(ValidationError, match="block_size"):
        Settings(block_size=10)


def test_settings_travel_to_the_replica_whole() -> None:
    settings = Settings(http_port=1234, api_keys="a-long-key")
    assert Settings(**pickle.loads(pickle.dumps(settings.model_dump()))) == settings


def test_a_start_that_cannot_work_says_why_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a folder"):
        run(Settings(model=tmp_path / "nothing"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"http_port {port}"):
            run(Settings(model=tmp_path, http_port=port, grpc_port=free_port()))


def test_more_models_are_names_and_folders() -> None:
    settings = Settings(model_id="a", models="b=/models/b, org/c@v2=/models/c")
    assert list(settings.served_models()) == ["a", "b", "org/c@v2"]
    assert settings.models["b"] == Path("/models/b")
    assert Settings(**pickle.loads(pickle.dumps(settings.model_dump()))) == settings


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"models": "b"}, "must be name=folder"),
        ({"models": "=/models/b"}, "cannot be a model's name"),
        ({"models": "b=/x,b=/y"}, "same name twice"),
        ({"model_id": "b", "models": "b=/x"}, "'b', which is the name of model"),
        ({"models": "b@step-3=/x"}, "not end like"),
        ({"model_id": "a@step-3"}, "not end like"),
        ({"model_id": "a b"}, "'a b' cannot be a model's name"),
        ({"max_loaded_checkpoints": 0}, "greater than or equal to 1"),
    ],
)
def test_names_that_no_request_could_use_are_told_at_the_start(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Settings(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tls_certificate": "cert.pem"}, "must be given together"),
        ({"tls_key": "key.pem"}, "must be given together"),
        ({"tls_certificate": "cert.pem", "tls_key": "key.pem"}, "needs --proxy python"),
        ({"tls_certificate": "nowhere.pem", "tls_key": "key.pem", "proxy": "python"}, "cannot be used"),
    ],
)
def test_tls_that_cannot_work_is_told_at_the_start(fields: dict[str, str], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Settings.model_validate(fields)


LINKS = {  # as Kubernetes sets them for the services topk, topk-http and topk-head-svc
    "TOPK_PORT": "tcp://10.0.0.1:8000",
    "TOPK_SERVICE_HOST": "10.0.0.1",
    "TOPK_SERVICE_PORT": "8000",
    "TOPK_SERVICE_PORT_HTTP": "8000",
    "TOPK_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "TOPK_PORT_8000_TCP_PROTO": "tcp",
    "TOPK_PORT_8000_TCP_PORT": "8000",
    "TOPK_PORT_8000_TCP_ADDR": "10.0.0.1",
    "TOPK_HTTP_PORT": "tcp://10.0.0.2:80",
    "TOPK_GRPC_PORT": "tcp://10.0.0.3:90",
    "TOPK_HTTP_SERVICE_HOST": "10.0.0.2",
    "TOPK_HEAD_SVC_PORT": "tcp://10.0.0.4:6379",
    "TOPK_HEAD_SVC_SERVICE_PORT_GCS_SERVER": "6379",
    "TOPK_HEAD_SVC_PORT_6379_TCP_ADDR": "10.0.0.4",
}


def test_a_clusters_links_and_a_clients_key_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (LINKS | {"TOPK_API_KEY": "of-a-client"}).items():
        monkeypatch.setenv(name, value)
    assert (Settings().http_port, Settings().grpc_port, Settings().all_api_keys()) == (8000, 9000, ())
    monkeypatch.setenv("TOPK_HTTP_PORT", "8001")
    assert Settings().http_port == 8001


@pytest.mark.parametrize("name", ["TOPK_PORT", "TOPK_HTTP_PROT", "TOPK_API_KEYZ", "TOPK_SERVICE"])
def test_a_variable_that_is_neither_is_still_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "8001")
    with pytest.raises(ValidationError, match=f"{name} is not a setting"):
        Settings()
