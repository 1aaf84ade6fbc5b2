"""The model that ships: the same laws on trained weights."""

import json
import random
from dataclasses import replace

import pytest
import torch

from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.request import EngineRequest, PromptEvent, TokenEvent
from tests.support.exact import bits
from tests.support.references import llama_like, reference_logits
from tests.support.tiny import GREEDY, dense, run, tokens, trace
from topk_model.catalogue.history import history
from topk_model.catalogue.reader import Catalogue
from topk_model.catalogue.show import NeuronsConfig, answer
from topk_model.checkpoints import load_model, read_config
from topk_model.interventions import Intervention
from topk_model.model_folder import DEFAULT_MODEL, DENSE_TWIN, HELD_OUT, weights_digest
from topk_model.modeling import cached_attention
from topk_model.release.card import EVALUATION, compared
from topk_model.release.evaluate import neuron_figures
from topk_model.steering.bench import Lever, SteeringBench
from topk_model.steering.concepts import Concept
from topk_model.steering.held_out import held_out_texts, steered_layers
from topk_model.steering.presets import MAX_COST, MIN_LOG_ODDS, read_presets
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


@pytest.mark.long
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
    edit = Intervention(layers=(3,), neuron=85, op="add", value=12.0, unit_values=(1.0,))
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

    clothes, others = (" dress", " hat", " coat", " boots", " silk"), (" time", " day", " men", " house", " word")
    gain, side_effect = (mean_logprob(words, (edit,)) - mean_logprob(words, ()) for words in (clothes, others))
    assert gain > 0.75
    assert side_effect < 0.25


@pytest.mark.parametrize(
    ("text", "word"),
    [("the soldier fired his gun at the enemy", "army"), ("the ship sailed in the storm", "sea")],
)
def test_a_sentence_finds_the_neurons_of_its_topic(text, word):
    catalogue = Catalogue.open(DEFAULT_MODEL)
    _, *found = answer(NeuronsConfig(text=text, limit=3), catalogue)
    assert len(found) == 3
    assert all(word in line for line in found)


def test_a_neuron_has_a_history_of_at_least_eight_checkpoints():
    past = history(DEFAULT_MODEL, 3, 211)
    assert len(past.checkpoints) >= 8
    assert past.checkpoints[0].token_overlap < 0.5
    assert past.checkpoints[-1].token_overlap == 1.0
    assert len(past.layers) == load()[0].config.num_topk_layers


@pytest.mark.long
def test_its_presets_steer_on_texts_that_they_were_not_found_on():
    model, tokenizer = load()
    context = model.config.max_position_embeddings
    texts = held_out_texts(DEFAULT_MODEL / HELD_OUT, tokenizer, context, half=1)
    bench = SteeringBench(model, texts[:: len(texts) // 8], steered_layers(model.config))
    presets = {preset.name: preset for preset in read_presets(DEFAULT_MODEL, weights_digest(DEFAULT_MODEL))}
    assert len(presets) >= 20
    for name in ("sea", "clothes", "body", "house", "food", "money"):
        preset = presets[name]
        word_ids = Concept(name=name, words=preset.words).token_ids(tokenizer)
        effect = bench.effect(Lever(layer=preset.layer, neuron=preset.neuron, value=preset.value), word_ids)
        assert effect.log_odds >= MIN_LOG_ODDS
        assert effect.cost <= MAX_COST


@pytest.mark.long
def test_its_neurons_are_active_at_fewer_tokens_than_its_dense_twins():
    entropies, layers = [], steered_layers(read_config(DEFAULT_MODEL))
    for folder in (DEFAULT_MODEL, DEFAULT_MODEL / DENSE_TWIN):
        model, tokenizer = load_model(folder, device="cpu")
        texts = held_out_texts(DEFAULT_MODEL / HELD_OUT, tokenizer, model.config.max_position_embeddings, half=0)
        figures = neuron_figures(model, texts[:64], layers)
        entropies.append(figures["median_token_entropy"])
        assert figures["dead_neuron_share"] < 0.1
    assert entropies[0] <= entropies[1] / 2


def test_its_card_and_its_record_agree():
    record = json.loads((DEFAULT_MODEL / EVALUATION).read_text())
    assert record["val_loss"] <= 1.05 * record["dense_val_loss"]
    assert record["num_concepts_steered"] == sum(row["steers"] for row in record["topk"]["steering"]) >= 20
    card = (DEFAULT_MODEL / "README.md").read_text()
    for name, *values in compared(record)[1:]:
        assert f"| {name} | {' | '.join(values)} |" in card
