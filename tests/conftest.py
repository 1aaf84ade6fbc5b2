"""What several test files share: a small training set, a finished small run made by the real commands, and a running
service over a tiny model."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.engine.core import EngineCore
from tests.support.catalogued import build, make_model
from tests.support.running import Running, topk_serve
from tests.support.served import Served, build_tiny_catalogues, save_tiny_model, serve_app
from tests.support.service.rpc import KEY, SMALL_CAP
from tests.support.tiny_run import train_config
from topk_model.training.books import chosen_titles
from topk_model.training.data import DataConfig, prepare
from topk_model.training.train import train

pytest_plugins = ["tests.support.web.browser"]

#: Marks that a test has since it uses a fixture, itself or through another one.
MARKS_BY_FIXTURE = {"running": "ray", "guarded": "ray", "browser": "browser", "books": "training"}


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in MARKS_BY_FIXTURE.keys() & getattr(item, "fixturenames", ()):
            item.add_marker(MARKS_BY_FIXTURE[fixture])
    items.sort(key=place)


def place(item: pytest.Item) -> list[bool]:
    """Services that several files share begin as late as can be: Ray works even if nobody asks it for anything."""
    shared = [name in getattr(item, "fixturenames", ()) for name in ("running", "guarded")]
    return [*shared, item.get_closest_marker("stops") is not None]


NAMES = ("Tom", "Ann", "the old man", "the sailor", "my aunt", "the boy")
VERBS = ("saw", "took", "found", "held", "lost", "sold")
THINGS = ("a ship", "the rope", "a dog", "some bread", "the lamp", "a coat", "the map")


def story(rng: random.Random) -> str:
    """Some easy paragraphs."""
    sentence = lambda: f"{rng.choice(NAMES)} {rng.choice(VERBS)} {rng.choice(THINGS)}. "  # noqa: E731
    return "\n\n".join("".join(sentence() for _ in range(rng.randrange(1, 6))).strip() for _ in range(12))


@pytest.fixture(scope="session")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source for `topk data`: a book under every title of the project's list."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("books") / "books.jsonl"
    rows = [{"author": author, "title": title, "text": story(rng)} for author, title in chosen_titles()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def data_folder(books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare(DataConfig(source=books, output=folder, vocab_size=320, topic_passes=0))
    return folder


@pytest.fixture(scope="session")
def finished_run(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 140 steps; it keeps checkpoints 64, 128 and 140."""
    run = tmp_path_factory.mktemp("runs") / "small"
    train(train_config(data_folder, run, steps=140, batch_size=4))
    return run


@pytest.fixture(scope="session")
def catalogued_model(finished_run: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run's model; it keeps checkpoints 64 and 128, and all three have a catalogue."""
    folder = make_model(finished_run, tmp_path_factory.mktemp("catalogued") / "model")
    build(folder, data=data_folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with three checkpoints; it has a catalogue, and the first of them, too."""
    path = save_tiny_model(tmp_path_factory.mktemp("tiny"), steps=(64, 128, 256))
    build_tiny_catalogues(path, steps=(64,))
    return path


@pytest.fixture(scope="session")
def served(tiny_model_path: Path) -> Iterator[Served]:
    """One service for every test that leaves it as it was."""
    with serve_app(tiny_model_path) as service:
        yield service


@pytest.fixture(scope="session")
def running(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One `topk serve`, over HTTP and gRPC, for every test that leaves it as it was."""
    with topk_serve(tiny_model_path, tmp_path_factory.mktemp("haproxy"), slowable=True) as service:
        yield service


#: What a host may have set for others than us, each of which has kept the service from starting once.
HOST = {
    "http_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "grpc_proxy": "http://127.0.0.1:9",
    "RAY_ADDRESS": "127.0.0.1:1",
    "TMPDIR": "/var/tmp",
    "TOPK_PORT": "tcp://10.0.0.1:8000",
    "TOPK_HTTP_PORT": "tcp://10.0.0.1:80",
    "TOPK_API_KEY": "of-a-client",
    "PYTHONIOENCODING": "latin-1",
}
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Behind Serve's Python proxy, with an API key, a low cap on messages and a model that chats; on a host that gets
    in the way, in a folder whose files have names of modules."""
    folder = tmp_path_factory.mktemp("guarded")
    for name in ("random.py", "typing_extensions.py", "service.py"):
        (folder / name).write_text("raise SystemExit('the file of the folder')")
    save_tiny_model(folder / "model", chat_template=TEMPLATE)
    (folder / "keys").write_text(KEY)
    options = ["--proxy", "python", "--api-key-file", str(folder / "keys")]
    options += ["--grpc-max-message-bytes", str(SMALL_CAP)]
    with topk_serve(Path("model"), folder, *options, variables=HOST, cwd=folder, slowable=True) as service:
        yield service


@pytest.fixture
def slow_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of this process that take 20 ms longer for each step, so that clients can leave while they run."""
    step = EngineCore.step

    def step_late(core: EngineCore, now: float) -> None:
        if not core.is_idle:
            time.sleep(0.02)
        step(core, now)

    monkeypatch.setattr(EngineCore, "step", step_late)
