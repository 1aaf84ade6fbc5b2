"""A plain Llama is served with what works, and says why the rest cannot be."""

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.served import MODEL_ID, Served, serve_app
from tests.support.small_vocabulary import small_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(small_tokenizer()), max_position_embeddings=128, bos_token_id=0, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    small_tokenizer().tokenizer.save_pretrained(folder)
    with serve_app(folder) as service:
        yield service


def test_it_generates_and_tokenizes(llama: Served) -> None:
    assert llama.complete(max_tokens=3, ignore_eos=True, logprobs=2)["usage"]["completion_tokens"] == 3
    assert llama.post("/v1/tokenize", prompt="Once").status_code == 200
    card = llama.client.get(f"/v1/models/{MODEL_ID}").json()
    assert card["topk"]["topk_layers"] == []


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a", "trace": {}}, "trace.layers"),
        ("/v1/completions", {"prompt": "a", "trace": {"layers": [1]}}, "trace.layers[0]"),
        ("/v1/activations", {"input": "a"}, "trace.layers"),
        ("/v1/levers", {"words": ["war"]}, "model"),
        (
            "/v1/completions",
            {"prompt": "a", "interventions": [{"layer": "all", "neuron": 1, "op": "ablate"}]},
            "interventions[0].layer",
        ),
        (
            "/v1/completions",
            {"prompt": "a", "interventions": [{"layer": 0, "neuron": 1, "op": "ablate"}]},
            "interventions[0].layer",
        ),
    ],
)
def test_what_it_cannot_do_is_said_with_the_reason(
    llama: Served, path: str, body: dict[str, object], param: str
) -> None:
    reply = llama.post(path, **body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "no_topk_layer")
    assert error["param"].startswith(param.split("[")[0])
    assert "has no TopK layers: all entries of its states are in use" in error["message"]
    assert "topk train --init-from" in error["message"]
