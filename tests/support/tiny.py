"""A tiny seeded model for tests of mechanics, and shorthands to run an engine over it."""

import time

import torch

from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.request import EngineRequest, Event, FinishEvent, SamplingParams, TokenEvent
from topk_model.configuration import TopKLMConfig
from topk_model.modeling import TopKLMForCausalLM
from topk_model.traces import TraceChunk, TraceSpec, concatenate

BOS, EOS, PAD = 0, 1, 2
GREEDY = SamplingParams(temperature=0.0)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tiny_config(**overrides: object) -> TopKLMConfig:
    fields: dict[str, object] = {
        "vocab_size": 101,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "initializer_range": 0.2,  # large enough that edits change what is generated
        "topk_k": 8,
        "n_nontopk": 2,
    }
    return TopKLMConfig(**(fields | overrides))


def tiny_model(seed: int = 0, **overrides: object) -> TopKLMForCausalLM:
    torch.manual_seed(seed)
    return TopKLMForCausalLM(tiny_config(**overrides)).eval().to(DEVICE)


def tiny_core(model: TopKLMForCausalLM | None = None, **sizes: object) -> EngineCore:
    """An engine core; it packs the model that it is given."""
    return EngineCore(model or tiny_model(), EngineConfig(**({"num_blocks": 512} | sizes)))


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    """BOS and random ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    return (BOS, *torch.randint(3, 101, (length - 1,), generator=generator).tolist())


def make_request(request_id: str = "r", length: int = 10, max_tokens: int = 8, **fields: object) -> EngineRequest:
    defaults: dict[str, object] = {"prompt_ids": prompt(length), "sampling": GREEDY, "ignore_eos": True}
    return EngineRequest(request_id=request_id, max_tokens=max_tokens, **(defaults | fields))


def run(core: EngineCore, *requests: EngineRequest) -> dict[str, list[Event]]:
    """Run requests to their ends together; the events of each."""
    events: dict[str, list[Event]] = {request.request_id: [] for request in requests}
    for request in requests:
        core.check(request)
        core.add(request)
    while not core.is_idle:
        core.step(time.monotonic())
        for request_id, event in core.take_events():
            events[request_id].append(event)
    return events


def tokens(events: list[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TokenEvent)]


def finish(events: list[Event]) -> FinishEvent:
    assert isinstance(events[-1], FinishEvent)
    assert not any(isinstance(event, FinishEvent) for event in events[:-1])
    return events[-1]


def trace(events: list[Event]) -> TraceChunk:
    return concatenate([e.trace for e in events if not isinstance(e, FinishEvent) and e.trace is not None])


def dense(chunk: TraceChunk, spec: TraceSpec, hidden_size: int = 64) -> torch.Tensor:
    """`[tokens, layers, hidden_size]`"""
    out = torch.zeros(len(chunk.offsets) - 1, hidden_size)
    counts = torch.from_numpy(chunk.offsets).diff()
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    out[rows, torch.from_numpy(chunk.indices).long()] = torch.from_numpy(chunk.values)
    return out.view(chunk.num_tokens, len(spec.layers), hidden_size)
