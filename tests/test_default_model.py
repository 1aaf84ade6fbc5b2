"""The model that ships: the same laws on trained weights."""

import random
from dataclasses import replace

import pytest
import torch

from service.engine.config import EngineConfig
from service.engine.loop import EngineCore
from service.engine.request import EngineRequest, PromptEvent, TokenEvent
from tests.references import llama_like, reference_logits
from tests.test_batch_invariance import bits
from tests.tiny import GREEDY, dense, run, tokens, trace
from topk_model.checkpoints import DEFAULT_MODEL, load_model
from topk_model.interventions import Intervention
from topk_model.modeling import cached_attention
from topk_model.traces import TraceSpec

TEXT = (
    'The old man sat down by the fire and looked at the children. "Once," he said, "there was a ship that sailed '
    'out of this harbour with forty men, and not one of them ever came home again." The wind blew hard that night.'
)
MAX_TOKENS = 24


def load(**sparsity: int):
    return load_model(DEFAULT_MODEL, device="cpu", **sparsity)


def core(**sparsity: int) -> EngineCore:
    return EngineCore(load(**sparsity)[0], EngineConfig(num_blocks=512))


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return load()[1](TEXT).input_ids


def request(prompt_ids, **fields) -> EngineRequest:
    defaults = {"request_id": "r", "max_tokens": MAX_TOKENS, "sampling": GREEDY, "ignore_eos": True}
    return EngineRequest(prompt_ids=tuple(prompt_ids), **(defaults | fields))


def engine_logprobs(events) -> torch.Tensor:
    prompt = [entry for event in events if isinstance(event, PromptEvent) for entry in event.logprobs if entry]
    generated = [event.logprobs for event in events if isinstance(event, TokenEvent)]
    return torch.tensor([entry.logprob for entry in prompt + generated])


def logprobs_of(logits: torch.Tensor, ids: list[int]) -> torch.Tensor:
    logprobs = torch.log_softmax(logits.float(), -1)
    return logprobs[:-1].gather(1, torch.tensor(ids)[1:, None]).squeeze(1)


@torch.no_grad()
def test_without_topk_it_is_transformers_llama(ids):
    num_layers = load()[0].config.num_hidden_layers
    model = load(n_nontopk=num_layers)[0]
    llama = llama_like(model)
    assert torch.equal(model(torch.tensor([ids])).logits, llama(torch.tensor([ids])).logits)
    events = run(core(n_nontopk=num_layers), request(ids, logprobs=0, prompt_logprobs=0))["r"]
    whole = [*ids, *tokens(events)]
    expected = logprobs_of(llama(torch.tensor([whole])).logits[0], whole)
    torch.testing.assert_close(engine_logprobs(events), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_with_topk_it_equals_the_written_out_definition(ids):
    model = load()[0]
    events = run(core(), request(ids, logprobs=0, prompt_logprobs=0))["r"]
    whole = [*ids, *tokens(events)]
    expected = logprobs_of(reference_logits(model, torch.tensor(whole)), whole)
    # In float64 as the definition is; what float32 adds is rounding, which trained weights enlarge.
    exact = logprobs_of(model.double()(torch.tensor([whole])).logits[0], whole)
    torch.testing.assert_close(exact, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(engine_logprobs(events), expected, atol=2e-2, rtol=0)


@torch.no_grad()
def test_its_trace_is_complete_and_is_the_state(ids):
    model = load()[0]
    spec = TraceSpec(layers=tuple(model.config.topk_layers))
    events = run(core(), request(ids, trace=spec, logprobs=0, prompt_logprobs=0))["r"]
    rows = trace(events)
    assert set((rows.offsets[1:] - rows.offsets[:-1]).tolist()) == {model.config.topk_k}
    whole = [*ids, *tokens(events)]
    states = dense(rows, spec, model.config.hidden_size)
    for layer in spec.layers:
        positions = torch.arange(len(whole))[None]
        attend = cached_attention(model.config, None, None)
        hidden = model.model.run_blocks(states[None, :, layer], positions, attend, start=layer + 1)
        got = logprobs_of(model.lm_head(hidden)[0], whole)
        torch.testing.assert_close(engine_logprobs(events), got, atol=2e-2, rtol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="bitwise invariance is promised on CPU only")
def test_64_requests_at_once_equal_each_alone(ids):
    engine = core()
    rng = random.Random(0)
    num_layers, width = engine.runner.num_topk_layers, engine.runner.shape.hidden_size
    requests = []
    for i in range(64):
        edit = Intervention(
            layers=(rng.randrange(num_layers),),
            neuron=rng.randrange(width),
            op=rng.choice(["set", "add", "scale"]),
            value=rng.uniform(-5, 5),
            site=rng.choice(["pre_topk", "post_topk"]),
        )
        requests.append(
            request(
                ids[: rng.randrange(1, len(ids))] * rng.choice([1, 2]),
                request_id=str(i),
                max_tokens=rng.randrange(1, 8),
                sampling=rng.choice([GREEDY, type(GREEDY)(seed=i, top_p=0.9)]),
                interventions=(edit,) * rng.randrange(2),
                trace=rng.choice([None, TraceSpec(layers=tuple(range(num_layers)))]),
                logprobs=2,
            )
        )
    together = run(engine, *requests)
    for alone in requests:
        assert bits(run(engine, alone)[alone.request_id]) == bits(together[alone.request_id])


def test_the_neuron_of_the_readme_makes_words_of_its_kind_more_probable():
    engine, tokenizer = core(), load()[1]
    edit = Intervention(layers=(0,), neuron=171, op="add", value=80.0, unit_values=(1.0,))
    contexts = ("She had a", "I saw the", "He came in with his", "They looked at the")

    def mean_logprob(words, interventions):
        asked = [
            request(tokenizer(context + word).input_ids, request_id=f"{context}{word}", max_tokens=0, prompt_logprobs=0)
            for context in contexts
            for word in words
        ]
        asked = [replace(one, interventions=interventions) for one in asked]
        events = run(engine, *asked)
        return sum(engine_logprobs(events[one.request_id])[-1].item() for one in asked) / len(asked)

    looks, others = (" eyes", " hair", " white", " blue", " shoulders"), (" time", " day", " men", " house", " word")
    gain, side_effect = (mean_logprob(words, (edit,)) - mean_logprob(words, ()) for words in (looks, others))
    assert gain > 0.75
    assert side_effect < 0.25
