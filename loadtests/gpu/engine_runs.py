"""Runs an engine core to its end, and makes a model with random weights to run. Knows no service."""

import time
from collections.abc import Iterable

import torch

from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.request import EngineRequest, Event, SamplingParams, TokenEvent
from topk_model.configuration import TopKLMConfig
from topk_model.modeling import TopKLMForCausalLM

GREEDY = SamplingParams(temperature=0.0)


def random_model(config: TopKLMConfig, device: torch.device, dtype: torch.dtype) -> TopKLMForCausalLM:
    """Seeded weights: the cost of a step does not depend on their values."""
    torch.manual_seed(0)
    with torch.device(device):
        return TopKLMForCausalLM(config).to(dtype).eval()


def engine_core(model: TopKLMForCausalLM, *, num_rows: int, num_positions: int) -> EngineCore:
    """One with room for `num_rows` sequences of `num_positions`; on a CPU it runs torch's step, as on a GPU."""
    config = EngineConfig(
        max_num_seqs=num_rows,
        max_step_tokens=num_rows + 512,
        max_waiting=num_rows,
        num_blocks=num_rows * -(-num_positions // 16),
        prefix_cache=False,  # each run is to read its prompts
        cpu_step="torch",
    )
    return EngineCore(model, config)


def generate(core: EngineCore, requests: Iterable[EngineRequest]) -> dict[str, list[Event]]:
    """Run requests together to their ends; returns the events of each."""
    events: dict[str, list[Event]] = {}
    for request in requests:
        core.check(request)
        core.add(request)
        events[request.request_id] = []
    while not core.is_idle:
        core.step(time.monotonic())
        for request_id, event in core.take_events():
            events[request_id].append(event)
    return events


def token_ids(events: Iterable[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TokenEvent)]


def wait_for(device: torch.device) -> None:
    """Return once everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
