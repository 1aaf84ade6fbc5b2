"""The HTTP application over a real replica and a real socket, without Ray."""

import asyncio
import random
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn

from service.http_api.app import create_app
from service.serving.model import ServedModel
from service.serving.replica import Replica
from service.settings import Settings
from tests.support.small_vocabulary import TEXTS, small_tokenizer
from topk_model.catalogue.build.build import CatalogueConfig, build_catalogue
from topk_model.configuration import TopKLMConfig
from topk_model.modeling import TopKLMForCausalLM

MODEL_ID = "tiny"


def save_tiny_model(
    folder: Path, *, chat_template: str | None = None, seed: int = 0, steps: Sequence[int] = ()
) -> Path:
    """A seeded model of four layers, two of them TopK, and a trained tokenizer, as a checkpoint on disk.

    It keeps other models as the checkpoints `steps`, each seeded with its step.
    """
    tokenizer = small_tokenizer().tokenizer
    config = tiny_text_config()
    torch.manual_seed(seed)
    TopKLMForCausalLM(config).save_pretrained(folder)
    for step in steps:
        torch.manual_seed(step)
        TopKLMForCausalLM(config).save_pretrained(folder / "checkpoints" / f"step-{step}")
    tokenizer.save_pretrained(folder)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return folder


def build_tiny_catalogues(model: Path, steps: Sequence[int] = ()) -> None:
    """Catalogues of a tiny model and of some of its checkpoints, by the real builder from a few sentences."""
    text = model.parent / f"{model.name}.txt"
    rng = random.Random(0)
    text.write_text("\n\n".join(" ".join(rng.choices(TEXTS, k=8)) for _ in range(40)))
    common = {"model": model, "text": text, "tokens": 1000, "threads": 1}
    build_catalogue(CatalogueConfig(**common, checkpoints=False))
    if steps:
        build_catalogue(CatalogueConfig(**common, steps=list(steps)))


def tiny_text_config() -> TopKLMConfig:
    tokenizer = small_tokenizer().tokenizer
    return TopKLMConfig(
        vocab_size=len(small_tokenizer()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,  # large enough that edits change what is generated
        topk_k=8,
        n_nontopk=2,
    )


def free_port() -> int:
    """A port that nobody listens on now, and that the system gives to no connection: those are from 32768 on."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Served:
    """A running service, for clients of every kind."""

    def __init__(self, replica: Replica, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.replica = replica
        self.url = url
        self._loop = loop
        self.client = httpx.Client(base_url=url, timeout=30)

    @property
    def model(self) -> ServedModel:
        """The served model's."""
        return self.replica.registry.models[MODEL_ID]

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json={"model": MODEL_ID} | body)

    def complete(self, **body: Any) -> dict[str, Any]:
        """A completion that must succeed."""
        reply = self.post("/v1/completions", **({"prompt": "Once upon a time"} | body))
        assert reply.status_code == 200, reply.text
        fields: dict[str, Any] = reply.json()
        return fields

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the service's event loop, to its end."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def is_idle(self) -> bool:
        stats = self.model.stats()
        return stats.num_running == stats.num_waiting == 0 and stats.num_free_blocks == stats.num_blocks

    def wait_idle(self, timeout_s: float = 2.0) -> bool:
        return wait_until(self.is_idle, timeout_s)


def wait_until(is_true: Callable[[], bool], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if is_true():
            return True
        time.sleep(0.02)
    return is_true()


@contextmanager
def serve_app(model: Path, *, port: int | None = None, **fields: Any) -> Iterator[Served]:
    """Serve a checkpoint with the given settings, by default on a free port."""
    settings = Settings(**({"model": model, "model_id": MODEL_ID, "num_threads": 1, "num_blocks": 256} | fields))
    started: list[tuple[Replica, uvicorn.Server, asyncio.AbstractEventLoop]] = []
    failed: list[BaseException] = []
    port = port or free_port()

    async def main() -> None:
        replica = Replica.load(settings)
        await replica.start()
        config = uvicorn.Config(create_app(replica), host="127.0.0.1", port=port, log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        started.append((replica, server, asyncio.get_running_loop()))
        await server.serve()
        await replica.stop()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert wait_until(lambda: bool(failed) or bool(started and started[0][1].started), 60), "no start in 60 s"
        if failed:
            raise failed[0]
        replica, _, loop = started[0]
        served = Served(replica, f"http://127.0.0.1:{port}", loop)
        yield served
        served.client.close()
    finally:
        if started:
            started[0][1].should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the service did not stop"
