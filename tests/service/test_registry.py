"""Several models in one replica: those served all the time, and kept states of training, loaded when asked for."""

import gc
import json
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.engine.request import EngineRequest
from service.serving import loading
from tests.support.running import Running
from tests.support.served import MODEL_ID, Served, save_tiny_model, serve_app, wait_until
from tests.support.small_vocabulary import small_tokenizer
from tests.support.tiny import GREEDY, run, tiny_core, tokens
from topk_model.checkpoints import checkpoint_folder, load_model
from topk_model.model_folder import weights_digest

PROMPT = "Once upon a time"
LONG = {"prompt": PROMPT, "max_tokens": 240, "ignore_eos": True, "temperature": 0}


def checkpoint(step: int) -> str:
    return f"{MODEL_ID}@step-{step}"


def text_of(path: Path, step: int | None = None, *, max_tokens: int = 12) -> str:
    """What the model continues `PROMPT` with, by an engine of its own."""
    model, _ = load_model(path, step=step, device="cpu")
    ids = small_tokenizer().encode(PROMPT)
    request = EngineRequest(request_id="r", prompt_ids=ids, max_tokens=max_tokens, sampling=GREEDY, ignore_eos=True)
    return small_tokenizer().decode(tokens(run(tiny_core(model), request)["r"]), skip_special=True)


def asked(service: Served, model: str, **body: Any) -> str:
    fields = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True} | body
    text: str = service.complete(**fields)["choices"][0]["text"]
    return text


def loaded(service: Served) -> list[str]:
    return [model.facts.id for model in service.replica.registry.running]


def num_engine_threads() -> int:
    return sum(thread.name == "engine" for thread in threading.enumerate())


def streamed(service: Served, **body: Any) -> tuple[str, dict[str, Any] | None]:
    """The text of a stream, and the error that it ended with."""
    text, error = "", None
    with service.client.stream("POST", "/v1/completions", json={"stream": True} | LONG | body) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                error = event.get("error")
                text += "".join(choice["text"] for choice in event.get("choices", ()))
    return text, error


@pytest.fixture
def few(tiny_model_path: Path) -> Iterator[Served]:
    """A service with room for one checkpoint."""
    with serve_app(tiny_model_path, max_loaded_checkpoints=1) as service:
        yield service


@pytest.mark.long
def test_a_checkpoint_answers_as_its_weights_do(few: Served, tiny_model_path: Path) -> None:
    texts = {step: text_of(tiny_model_path, step) for step in (64, 128)}
    assert len({*texts.values(), text_of(tiny_model_path)}) == 3
    for step in (64, 128, 64):
        assert asked(few, checkpoint(step)) == texts[step]
    assert asked(few, MODEL_ID) == text_of(tiny_model_path)
    trace = few.post("/v1/activations", model=checkpoint(64), input=PROMPT).json()
    assert trace["model"] == trace["data"][0]["trace"]["model"] == checkpoint(64)
    assert trace["data"][0]["trace"]["checkpoint"] == "step-64"
    steered = few.complete(model=checkpoint(64), interventions=[{"layer": 0, "neuron": 3, "op": "ablate"}])
    assert steered["model"] == checkpoint(64)


def test_a_card_names_the_weights_that_are_loaded(few: Served, tiny_model_path: Path) -> None:
    def told(name: str) -> str | None:
        return few.client.get(f"/v1/models/{name}").json()["topk"]["weights_sha256"]

    assert told(MODEL_ID) == weights_digest(tiny_model_path)
    for step in (64, 128):  # with a catalogue, and without
        assert told(checkpoint(step)) is None
        asked(few, checkpoint(step))
        assert told(checkpoint(step)) == weights_digest(checkpoint_folder(tiny_model_path, step))
    assert told(checkpoint(64)) is None  # it had to go


def test_a_checkpoint_that_goes_takes_its_thread_and_its_memory_along(few: Served) -> None:
    asked(few, checkpoint(64))
    num_threads = num_engine_threads()
    hosts = few.replica.registry
    weights = weakref.ref(hosts.running[-1]._engine._core.runner.model)
    gc.disable()  # which could be long in coming
    try:
        asked(few, checkpoint(128))
        assert wait_until(lambda: weights() is None, 5)
    finally:
        gc.enable()
    assert loaded(few) == [MODEL_ID, checkpoint(128)]
    assert num_engine_threads() == num_threads
    unloads = [line for line in few.client.get("/metrics").text.splitlines() if "topk_model_unloads_total{" in line]
    assert {line.partition('model="')[2].split('"')[0] for line in unloads if line.endswith(" 1.0")} == {checkpoint(64)}


@pytest.mark.long
def test_the_checkpoint_used_least_recently_goes_first(tiny_model_path: Path) -> None:
    with serve_app(tiny_model_path, max_loaded_checkpoints=2) as service:
        for step in (64, 128, 64, 256):
            asked(service, checkpoint(step))
        assert set(loaded(service)) == {MODEL_ID, checkpoint(64), checkpoint(256)}


@pytest.mark.usefixtures("slow_engine")
@pytest.mark.long
def test_requests_of_a_checkpoint_that_has_to_go_end_first(few: Served, tiny_model_path: Path) -> None:
    whole = asked(few, checkpoint(64), max_tokens=80)
    engine = few.replica.registry.running[-1]._engine
    with ThreadPoolExecutor(2) as pool:
        stream = pool.submit(streamed, few, model=checkpoint(64), max_tokens=80)
        assert wait_until(lambda: engine.stats().num_running == 1, 5)
        other = pool.submit(asked, few, checkpoint(128))
        assert wait_until(lambda: few.replica.registry.running[1].is_stopping, 5)
        # The model that has to go takes no one more: who asks for it now waits for it to come again.
        again = asked(few, checkpoint(64))
        assert stream.result(20) == (whole, None)
        assert other.result(20) == text_of(tiny_model_path, 128)
    assert again == whole[: len(again)]
    assert not engine.stats().is_alive


@pytest.mark.usefixtures("slow_engine")
def test_requests_that_take_too_long_fail_with_the_one_error(tiny_model_path: Path) -> None:
    with serve_app(tiny_model_path, max_loaded_checkpoints=1, drain_timeout_s=0.2) as service:
        asked(service, checkpoint(64))
        engine = service.replica.registry.running[-1]._engine
        with ThreadPoolExecutor(1) as pool:
            stream = pool.submit(streamed, service, model=checkpoint(64))
            assert wait_until(lambda: engine.stats().num_running == 1, 5)
            assert asked(service, checkpoint(128))
            _, error = stream.result(10)
        assert error is not None
        assert error["type"] == "service_unavailable_error"


def test_first_requests_at_once_load_once_and_hold_no_one_up(
    few: Served, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a disk that takes a second."""
    calls: list[int | None] = []

    def slow_load(path: Path, *, step: int | None = None, **options: Any) -> Any:
        calls.append(step)
        time.sleep(1.0)
        return load_model(path, step=step, **options)

    monkeypatch.setattr(loading, "load_model", slow_load)
    with ThreadPoolExecutor(8) as pool:
        firsts = [pool.submit(asked, few, checkpoint(64)) for _ in range(8)]
        assert wait_until(lambda: bool(calls), 5)
        began = time.monotonic()
        assert asked(few, MODEL_ID) == text_of(tiny_model_path)
        assert few.client.get("/health/live").status_code == 200
        assert time.monotonic() - began < 0.9
        assert {first.result(10) for first in firsts} == {text_of(tiny_model_path, 64)}
    assert calls == [64]


def test_a_client_that_goes_leaves_the_load_to_the_next(few: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int | None] = []

    def slow_load(path: Path, *, step: int | None = None, **options: Any) -> Any:
        calls.append(step)
        time.sleep(0.5)
        return load_model(path, step=step, **options)

    monkeypatch.setattr(loading, "load_model", slow_load)
    late = few.post("/v1/completions", model=checkpoint(64), prompt=PROMPT, timeout_s=0.1)
    assert late.status_code == 408
    assert "before tiny@step-64 was loaded" in late.json()["error"]["message"]
    assert asked(few, checkpoint(64))
    assert calls == [64]


def test_a_checkpoint_whose_files_are_broken_hurts_no_other(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, steps=(64, 128))
    weights = path / "checkpoints" / "step-128" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with serve_app(path, max_loaded_checkpoints=1) as service:
        for _ in range(2):
            asked(service, checkpoint(64))  # which the first try below puts out, and the second does not
            reply = service.post("/v1/completions", model=checkpoint(128), prompt=PROMPT)
            assert reply.status_code == 500
            error = reply.json()["error"]
            assert error["code"] == "checkpoint_unreadable"
            assert error["param"] == "model"
            assert "checkpoints/step-128/model.safetensors is not a complete safetensors file" in error["message"]
            assert str(path) not in reply.text
        assert loaded(service) == [MODEL_ID, checkpoint(64)]
        assert service.client.get("/health/ready").status_code == 200
        assert asked(service, MODEL_ID) == text_of(path)


def test_what_is_not_served_is_refused_by_name(few: Served) -> None:
    for name in (checkpoint(65), f"{MODEL_ID}@step-064", f"{MODEL_ID}@step-", f"{MODEL_ID}@64", "other@step-64"):
        for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/tokenize", {"prompt": "a"})):
            reply = few.post(path, model=name, **body)
            assert reply.status_code == 404
            assert reply.json()["error"]["code"] == "model_not_found"
        assert few.client.get(f"/v1/models/{name}").status_code == 404
    said = few.post("/v1/completions", model=checkpoint(65), prompt="a").json()["error"]["message"]
    assert "it has: step-64, step-128, step-256" in said
    assert loaded(few) == [MODEL_ID]


def test_health_looks_at_every_engine(few: Served) -> None:
    asked(few, checkpoint(64))
    assert few.client.get("/health/live").status_code == 200
    few.replica.registry.running[-1]._engine.stop()
    reply = few.client.get("/health/live")
    assert reply.status_code == 503
    assert checkpoint(64) in reply.json()["error"]["message"]


def test_a_checkpoint_has_a_card_and_a_smaller_cache(few: Served) -> None:
    (listed,) = few.client.get("/v1/models").json()["data"]
    assert listed["topk"]["checkpoints"] == ["step-64", "step-128", "step-256"]
    card = few.client.get(f"/v1/models/{checkpoint(64)}").json()
    assert card["id"] == checkpoint(64)
    assert card["topk"] == listed["topk"] | {"checkpoints": [], "checkpoint": "step-64", "weights_sha256": None}
    assert loaded(few) == [MODEL_ID]  # a card is read without the weights
    asked(few, checkpoint(64))
    main, kept = few.replica.registry.running
    assert kept.stats().num_blocks == main.stats().num_blocks // 4
    ids = few.post("/v1/tokenize", model=checkpoint(64), prompt=PROMPT).json()
    assert ids == few.post("/v1/tokenize", prompt=PROMPT).json()


def test_several_models_are_served_side_by_side(tiny_model_path: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=7, steps=(32,))
    with serve_app(tiny_model_path, models={"org/other": other}) as service:
        data = service.client.get("/v1/models").json()["data"]
        assert [card["id"] for card in data] == [MODEL_ID, "org/other"]
        assert service.client.get("/v1/models/org/other").json() == data[1]
        assert asked(service, MODEL_ID) == text_of(tiny_model_path)
        assert asked(service, "org/other") == text_of(other)
        assert asked(service, "org/other@step-32") == text_of(other, 32)
        said = service.post("/v1/completions", model="gpt-x", prompt="a").json()["error"]["message"]
        assert "'tiny', 'org/other' are" in said


@pytest.mark.long
def test_engines_beside_each_other_change_no_bit(tiny_model_path: Path) -> None:
    """Each has threads of its own for its products, and one for all else."""
    body = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0, "ignore_eos": True, "trace": {"encoding": "packed"}}
    with serve_app(tiny_model_path, max_loaded_checkpoints=2, num_threads=2) as service:
        names = [MODEL_ID, checkpoint(64), checkpoint(128)]

        def answer(name: str) -> Any:
            return service.complete(model=name, **body)["choices"]

        alone = {name: answer(name) for name in names}
        with ThreadPoolExecutor(6) as pool:
            for name, choices in zip(names * 4, pool.map(answer, names * 4), strict=True):
                assert choices == alone[name]


def test_serve_multiplexes_checkpoints(running: Running, tiny_model_path: Path) -> None:
    """Serve's default proxy, and its own cache of two."""
    create = running.openai.completions.create
    fields: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}}
    texts = {step: text_of(tiny_model_path, step) for step in (64, 128, 256)}
    for step in (64, 128, 256, 64):
        assert create(model=checkpoint(step), **fields).choices[0].text == texts[step]
    assert running.metric("topk_model_unloads_total", f'model="{checkpoint(64)}"') == 1
    assert running.metric("topk_model_unloads_total", f'model="{checkpoint(128)}"') == 1
    assert running.metric("topk_num_loaded_models") == 3
    with ThreadPoolExecutor(12) as pool:
        steps = [64, 128, 256] * 4
        for step, reply in zip(
            steps, pool.map(lambda step: create(model=checkpoint(step), **fields), steps), strict=True
        ):
            assert reply.choices[0].text == texts[step]
    assert running.openai.models.retrieve(checkpoint(64)).id == checkpoint(64)
