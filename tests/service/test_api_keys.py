"""Keys that change without a restart: those of a file, read again once the file has changed."""

import os
from pathlib import Path

import pytest

from service.admission import KEY_FILE_PERIOD_S, ApiKeys
from service.observability.metrics import Metrics
from service.observability.metrics_page import Collected, collect, render
from tests.support.served import serve_app, wait_until

OLD, NEW, FIXED = "the-old-key", "the-new-key", "a-fixed-key"


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """As a kubelet mounts a Secret: a link into a folder that is swapped whole."""
    swap(tmp_path, f"{OLD}\n", "first")
    (tmp_path / "api-keys").symlink_to("..data/api-keys")
    return tmp_path / "api-keys"


def swap(folder: Path, text: str, name: str) -> None:
    (folder / name).mkdir()
    (folder / name / "api-keys").write_text(text)
    (folder / "..new").symlink_to(name)
    os.replace(folder / "..new", folder / "..data")


def accepted(keys: ApiKeys) -> set[str]:
    return {key for key in (OLD, NEW, FIXED) if keys.accept(f"Bearer {key}")}


def test_a_changed_file_counts_once_it_is_looked_at_again(file: Path) -> None:
    clock = Clock()
    keys = ApiKeys([FIXED], file, clock=clock)
    assert accepted(keys) == {OLD, FIXED}
    swap(file.parent, f"{OLD}\n{NEW}\n", "second")
    clock.now_s = KEY_FILE_PERIOD_S / 2
    assert accepted(keys) == {OLD, FIXED}
    clock.now_s = KEY_FILE_PERIOD_S
    assert accepted(keys) == {OLD, NEW, FIXED}
    swap(file.parent, f"{NEW}\n", "third")
    clock.now_s = 2 * KEY_FILE_PERIOD_S
    assert accepted(keys) == {NEW, FIXED}


def test_a_file_written_over_with_as_many_bytes_counts(file: Path) -> None:
    clock = Clock()
    keys = ApiKeys((), file, clock=clock)
    file.write_text(f"{NEW}\n")
    assert len(OLD) == len(NEW)
    clock.now_s = KEY_FILE_PERIOD_S
    assert accepted(keys) == {NEW}


@pytest.mark.parametrize("text", ["", "short\n", "# none\n", None])
def test_a_file_that_cannot_be_used_leaves_the_keys_as_they_were(
    file: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock, metrics = Clock(), Metrics()
    keys = ApiKeys((), file, clock=clock)
    metrics.watch_keys(keys)
    if text is None:
        file.resolve().unlink()
    else:
        file.write_text(text)
    for _ in range(3):
        clock.now_s += KEY_FILE_PERIOD_S
        assert accepted(keys) == {OLD}
    (record,) = caplog.records  # not one at every look
    assert record.levelname == "ERROR"
    assert "the previous keys stay accepted" in record.message
    assert 'topk_api_keys_stale{serve_replica="r"} 1' in page(metrics)
    (file.parent / "..data" / "api-keys").write_text(f"{NEW}\n")
    clock.now_s += KEY_FILE_PERIOD_S
    assert accepted(keys) == {NEW}
    assert 'topk_api_keys_stale{serve_replica="r"} 0' in page(metrics)


def page(metrics: Metrics) -> str:
    return render(Collected(replicas=[collect(metrics, "r")], num_asked=1)).decode()


def test_keys_change_in_a_service_that_runs(tiny_model_path: Path, file: Path) -> None:
    with serve_app(tiny_model_path, api_key_file=file) as service:
        statuses = lambda: [  # noqa: E731
            service.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code
            for key in (OLD, NEW)
        ]
        assert statuses() == [200, 401]
        swap(file.parent, f"{NEW}\n", "second")
        assert wait_until(lambda: statuses() == [401, 200], 3 * KEY_FILE_PERIOD_S)
