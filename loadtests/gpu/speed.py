"""Tokens per second of the engine, transformers and vLLM, how often the host waits, and the gain of a CUDA graph."""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loadtests.gpu.engine_runs import GREEDY, engine_core, generate, random_model, wait_for
from service.engine.attention import PagedAttention
from service.engine.batch import Batch
from service.engine.core import EngineCore
from service.engine.request import EngineRequest
from service.engine.runner import Runner
from topk_model.configuration import TopKLMConfig
from topk_model.editing import EditedTopK
from topk_model.interventions import Intervention
from topk_model.modeling import TopKLMForCausalLM

PROMPT_TOKENS = 32
EDIT = Intervention(layers=(0,), neuron=5, op="add", value=1.0)
#: Calls by which the host waits for a GPU.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
NUM_STEPS = 20


def prompts(config: TopKLMConfig, num_rows: int) -> list[tuple[int, ...]]:
    ids = torch.randint(3, config.vocab_size, (num_rows, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    return [tuple(row) for row in ids.tolist()]


def requests(config: TopKLMConfig, num_rows: int, num_tokens: int, *, is_edited: bool) -> list[EngineRequest]:
    return [
        EngineRequest(
            request_id=str(i),
            prompt_ids=ids,
            max_tokens=num_tokens,
            sampling=GREEDY,
            ignore_eos=True,
            interventions=(EDIT,) if is_edited else (),
        )
        for i, ids in enumerate(prompts(config, num_rows))
    ]


def best_rate(device: torch.device, num_tokens: int, run: Callable[[], object]) -> float:
    """Tokens per second of the faster of two runs, after a warm-up run."""
    seconds = []
    for _ in range(3):
        wait_for(device)
        began = time.perf_counter()
        run()
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    return num_tokens / min(seconds[1:])


def engine_rate(model: TopKLMForCausalLM, num_rows: int, num_tokens: int, *, is_edited: bool) -> float:
    core = engine_core(model, num_rows=num_rows, num_positions=PROMPT_TOKENS + num_tokens)
    made = requests(model.config, num_rows, num_tokens, is_edited=is_edited)
    return best_rate(model.device, num_rows * num_tokens, lambda: generate(core, made))


def llama(config: TopKLMConfig) -> LlamaConfig:
    """The plain model of the same shape."""
    fields = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
    )
    shape = {name: getattr(config, name) for name in fields}
    return LlamaConfig(**shape, bos_token_id=0, eos_token_id=1, pad_token_id=2)


def transformers_rate(
    config: TopKLMConfig, device: torch.device, dtype: torch.dtype, num_rows: int, num_tokens: int
) -> float:
    """The plain model with `generate`, greedy, in one batch."""
    model = LlamaForCausalLM(llama(config)).to(device, dtype).eval()
    ids = torch.tensor(prompts(config, num_rows), device=device)
    options: dict[str, Any] = {"do_sample": False, "min_new_tokens": num_tokens, "max_new_tokens": num_tokens}
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        return best_rate(
            device, num_rows * num_tokens, lambda: model.generate(input_ids=ids, attention_mask=mask, **options)
        )


def vllm_rates(config: TopKLMConfig, dtype: torch.dtype, rows: list[int], num_tokens: int) -> dict[str, float] | None:
    """The plain model in vLLM; None if it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        return None
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(llama(config)).to(dtype).save_pretrained(folder)
        engine = LLM(folder, skip_tokenizer_init=True, dtype=str(dtype).removeprefix("torch."), max_model_len=256)
        rule = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)

        def rate(num_rows: int) -> float:
            asked = [{"prompt_token_ids": list(ids)} for ids in prompts(config, num_rows)]

            def run() -> object:
                return engine.generate(asked, rule, use_tqdm=False)

            return best_rate(torch.device("cuda"), num_rows * num_tokens, run)

        return {str(num_rows): rate(num_rows) for num_rows in rows}


def decoding(model: TopKLMForCausalLM, num_rows: int, *, is_edited: bool) -> EngineCore:
    """An engine whose prompts have been read."""
    num_tokens = 4 * NUM_STEPS
    core = engine_core(model, num_rows=num_rows, num_positions=PROMPT_TOKENS + num_tokens)
    for request in requests(model.config, num_rows, num_tokens, is_edited=is_edited):
        core.add(request)
    while any(sequence.is_prefilling for sequence in core.scheduler.all()):
        core.step(time.monotonic())
    return core


def waits_per_step(model: TopKLMForCausalLM, num_rows: int, *, is_edited: bool) -> float | None:
    """How often the host waits for the GPU in a decode step; None on a CPU."""
    if model.device.type != "cuda":
        return None
    core = decoding(model, num_rows, is_edited=is_edited)
    core.step(time.monotonic())
    with torch.profiler.profile() as seen:
        for _ in range(NUM_STEPS):
            core.step(time.monotonic())
    # This includes the profiler's own last wait.
    return (sum(event.count for event in seen.key_averages() if event.key in WAITS) - 1) / NUM_STEPS


def graph_gain(model: TopKLMForCausalLM, num_rows: int) -> dict[str, float] | None:
    """Milliseconds of the model's part of a decode step, launched normally and replayed as a CUDA graph."""
    if model.device.type != "cuda":
        return None
    core = decoding(model, num_rows, is_edited=False)
    runner = core.runner
    assert isinstance(runner, Runner)
    batch = Batch.of(core.scheduler.plan(), core.config.block_size, model.device)
    attend = PagedAttention(runner.cache, batch, runner.groups)
    is_special = runner.is_special[batch.token_ids]

    def step() -> torch.Tensor:
        sparsify = EditedTopK(
            runner.edits, runner.shape, batch.slots, batch.positions, is_special, batch.is_counted, None
        )
        embedded = model.model.embed_tokens(batch.token_ids)
        return model.lm_head(model.model.run_blocks(embedded, batch.positions, attend, sparsify)).float().argmax(-1)

    def milliseconds(run: Callable[[], object]) -> float:
        return 1000 / best_rate(model.device, NUM_STEPS, lambda: [run() for _ in range(NUM_STEPS)])

    with torch.inference_mode():
        launched_ms = milliseconds(step)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        replayed_ms = milliseconds(graph.replay)
    return {"launched_ms": launched_ms, "replayed_ms": replayed_ms, "times_as_fast": launched_ms / replayed_ms}


def measure(
    config: TopKLMConfig, device: torch.device, dtype: torch.dtype, rows: list[int], num_tokens: int
) -> dict[str, Any]:
    """All measurements of this file for one shape."""
    model = random_model(config, device, dtype)
    num_parameters = sum(
        parameter.numel() for parameter in model.parameters()
    )  # on a CPU the engine packs and removes them
    by_rows = {}
    for num_rows in rows:
        by_rows[str(num_rows)] = {
            "engine_tokens_per_s": engine_rate(model, num_rows, num_tokens, is_edited=False),
            "engine_tokens_per_s_with_an_edit_in_every_row": engine_rate(model, num_rows, num_tokens, is_edited=True),
            "transformers_tokens_per_s": transformers_rate(config, device, dtype, num_rows, num_tokens),
            "host_waits_per_step": waits_per_step(model, num_rows, is_edited=False),
            "host_waits_per_step_with_an_edit_in_every_row": waits_per_step(model, num_rows, is_edited=True),
            "cuda_graph": graph_gain(model, num_rows),
        }
    return {
        "parameters": num_parameters,
        "dtype": str(dtype).removeprefix("torch."),
        "prompt_tokens": PROMPT_TOKENS,
        "generated_tokens": num_tokens,
        "rows": by_rows,
        "vllm_tokens_per_s": vllm_rates(config, dtype, rows, num_tokens) if device.type == "cuda" else None,
    }
