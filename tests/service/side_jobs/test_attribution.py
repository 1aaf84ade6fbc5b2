"""Why a token: effects are those of requests that ablate the same, what cannot matter has none, and bad requests."""

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from service.serving.side_jobs import SideJob, result_of
from tests.support.served import MODEL_ID, Served, save_tiny_model, serve_app, tiny_text_config, wait_until
from tests.support.small_vocabulary import TEXTS
from topk_model.modeling import TopKLMForCausalLM

PATH = "/v1/attributions"
Fields = dict[str, Any]


def attribution(served: Served, **body: Any) -> Fields:
    """An attribution that must succeed."""
    reply = served.post(PATH, **body)
    assert reply.status_code == 200, reply.text
    fields: Fields = reply.json()
    return fields


def logprob(served: Served, ids: list[int], token_id: int, interventions: list[Fields]) -> float:
    """The log-probability of a token after others, by the public API."""
    body = {"prompt": [*ids, token_id], "echo": True, "logprobs": 0, "max_tokens": 1, "interventions": interventions}
    return float(served.complete(**body)["choices"][0]["logprobs"]["token_logprobs"][len(ids)])


def ablation(layer: Any, neuron: int, start: int, end: int) -> Fields:
    positions = {"start": start, "end": end}
    return {"layer": layer, "neuron": neuron, "op": "ablate", "positions": positions, "include_special": True}


def random_edits(rng: random.Random, length: int) -> list[Fields]:
    edits: list[Fields] = [
        {"layer": rng.choice([0, 1, "all"]), "neuron": rng.randrange(64), "op": "set", "value": rng.uniform(1, 5)},
        {"layer": 1, "neuron": rng.randrange(64), "op": "add", "value": 1.0, "site": "pre_topk"},
        {"layer": 1, "neuron": 3, "op": "scale", "value": 2.0, "positions": {"start": 1, "end": length}},
        {
            "layer": 1,
            "neuron": rng.randrange(64),
            "op": "set",
            "value": 2.0,
            "when": [{"layer": 0, "neuron": rng.randrange(64), "is": rng.choice(["active", "inactive"])}],
        },
    ]
    return rng.sample(edits, rng.randrange(4))


def ids_of(served: Served, text: str) -> list[int]:
    return list(served.post("/v1/tokenize", prompt=text).json()["tokens"])


@pytest.mark.parametrize("seed", range(6))
def test_every_effect_is_that_of_a_request_which_ablates_the_same(served: Served, seed: int) -> None:
    rng = random.Random(seed)
    ids = ids_of(served, " ".join(rng.choices(TEXTS, k=3)))[: rng.randrange(5, 40)]
    position = rng.randrange(2, len(ids) + 1)
    edits = random_edits(rng, len(ids))
    target: Fields = (
        {"position": position, "token": rng.randrange(3, 100)} if rng.random() < 0.5 else {"position": position}
    )
    against = rng.choice([None, 7])
    body = {"prompt": ids, "target": target, "interventions": edits, "top_n": 500}
    found = attribution(served, **body, **({} if against is None else {"against": against}))
    token_id = found["target"]["token"]["token_id"]
    assert "token" not in target or token_id == target["token"]

    def score(extra: list[Fields]) -> float:
        value = logprob(served, ids[:position], token_id, [*edits, *extra])
        return value if against is None else value - logprob(served, ids[:position], against, [*edits, *extra])

    base = score([])
    assert found["target"]["score"] == pytest.approx(base, abs=1e-5)
    assert found["num_neurons"] == len(found["neurons"]) >= 8 * 2 * position
    for neuron in rng.sample(found["neurons"], 25):
        alone = ablation(neuron["layer"], neuron["neuron"], neuron["position"], neuron["position"] + 1)
        assert neuron["effect"] == pytest.approx(base - score([alone]), abs=1e-5), neuron
    # The tiny model has no more neurons in a layer than a request may edit.
    room = 64 - len(edits)
    for where, layers in ((found["positions"][rng.randrange(position)], "all"), (rng.choice(found["layers"]), None)):
        start, end = (where["position"], where["position"] + 1) if layers else (0, position)
        layer = layers or where["layer"]
        if room >= 64:
            everywhere = [ablation(layer, neuron, start, end) for neuron in range(64)]
            assert where["effect"] == pytest.approx(base - score(everywhere), abs=1e-5), where
    for where in found["positions"][position:]:
        assert where["effect"] == 0 == where["num_neurons"]
    assert [where["position"] for where in found["positions"]] == list(range(len(ids)))
    sums = found["sums"]
    assert sums["neurons"] == pytest.approx(sum(neuron["effect"] for neuron in found["neurons"]))
    assert sums["neurons_gap"] == pytest.approx(sums["neurons"] - sums["everything"])


def test_whole_positions_layers_and_everything_are_those_of_requests_too(served: Served) -> None:
    ids = ids_of(served, "Once upon a time there was a dog")
    found = attribution(served, prompt=ids, top_n=0)
    token_id, end = found["target"]["token"]["token_id"], len(ids)
    base = logprob(served, ids, token_id, [])

    def effect(layer: Any, start: int, end: int) -> float:
        return base - logprob(served, ids, token_id, [ablation(layer, neuron, start, end) for neuron in range(64)])

    for where in found["positions"]:
        assert where["effect"] == pytest.approx(effect("all", where["position"], where["position"] + 1), abs=1e-5)
    for where in found["layers"]:
        assert where["effect"] == pytest.approx(effect(where["layer"], 0, end), abs=1e-5)
    assert found["sums"]["everything"] == pytest.approx(effect("all", 0, end), abs=1e-5)
    assert found["neurons"] == []


def test_a_position_that_edits_have_silenced_has_no_effect(served: Served) -> None:
    ids = ids_of(served, "Once upon a time there was a dog")
    silenced = [ablation("all", neuron, 3, 4) for neuron in range(64)]
    where = attribution(served, prompt=ids, interventions=silenced, top_n=0)["positions"][3]
    assert (where["position"], where["num_neurons"], where["effect"]) == (3, 0, 0.0)


def test_what_is_asked_for_is_what_is_ablated(served: Served) -> None:
    ids = ids_of(served, "Once upon a time there was a dog")
    body = {"prompt": ids, "layers": [1], "positions": {"start": 2, "end": 5}}
    found = attribution(served, **body, top_n=500, min_effect=1e-4)
    assert {neuron["layer"] for neuron in found["neurons"]} == {1}
    assert {neuron["position"] for neuron in found["neurons"]} <= {2, 3, 4}
    assert [where["position"] for where in found["positions"]] == [2, 3, 4]
    assert found["num_neurons"] == 8 * 3
    effects = [abs(neuron["effect"]) for neuron in found["neurons"]]
    assert effects == sorted(effects, reverse=True)
    assert min(effects) >= 1e-4


def test_a_neuron_is_explained_by_what_its_value_is_without_others(served: Served) -> None:
    ids = ids_of(served, "Once upon a time there was a dog")
    trace = served.post("/v1/activations", input=ids, trace={"layers": [1]}).json()["data"][0]["trace"]
    position = len(ids) - 2
    neuron, value = (trace[name][trace["offsets"][position]] for name in ("indices", "values"))
    target = {"position": position, "layer": 1, "neuron": neuron}
    found = attribution(served, prompt=ids, target=target, top_n=500)
    assert found["target"]["unit"] == "activation"
    assert found["target"]["score"] == pytest.approx(value)
    assert found["target"]["token"] is None
    assert {one["layer"] for one in found["neurons"]} == {0}
    for one in random.Random(0).sample(found["neurons"], 20):
        alone = ablation(0, one["neuron"], one["position"], one["position"] + 1)
        spec = {"layers": [1], "neurons": [neuron], "positions": {"start": position, "end": position + 1}}
        changed = served.post("/v1/activations", input=ids, interventions=[alone], trace=spec).json()["data"][0][
            "trace"
        ]
        assert one["effect"] == pytest.approx(value - sum(changed["values"]), abs=1e-5), one


def test_the_graph_says_what_its_nodes_do_to_each_other_and_together(served: Served) -> None:
    ids = ids_of(served, "Once upon a time there was a dog")
    found = attribution(served, prompt=ids, graph=True, max_nodes=12)
    graph, token_id = found["graph"], found["target"]["token"]["token_id"]
    assert graph["graph_version"] == 1
    assert [{k: v for k, v in node.items() if k != "id"} for node in graph["nodes"]] == found["neurons"][:12]
    together = [ablation(n["layer"], n["neuron"], n["position"], n["position"] + 1) for n in graph["nodes"]]
    base = logprob(served, ids, token_id, [])
    assert graph["effect"] == pytest.approx(base - logprob(served, ids, token_id, together), abs=1e-5)
    assert graph["share"] == pytest.approx(graph["effect"] / found["sums"]["everything"])
    assert graph["edges"]
    for edge in graph["edges"]:
        source, target = graph["nodes"][edge["source"]], graph["nodes"][edge["target"]]
        assert source["layer"] < target["layer"]
        assert source["position"] <= target["position"]
        assert abs(edge["share"]) >= graph["min_share"]
        at = target["position"]
        spec = {"layers": [target["layer"]], "neurons": [target["neuron"]], "positions": {"start": at, "end": at + 1}}
        alone = [ablation(source["layer"], source["neuron"], source["position"], source["position"] + 1)]
        reply = served.post("/v1/activations", input=ids, interventions=alone, trace=spec).json()
        changed = sum(reply["data"][0]["trace"]["values"])
        assert edge["effect"] == pytest.approx(target["value"] - changed, abs=1e-5)


def test_a_stream_tells_of_progress_and_ends_with_the_attribution(served: Served) -> None:
    body = {"model": MODEL_ID, "prompt": "Once upon a time there was a dog", "stream": True}
    reply = served.client.post(PATH, json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    events = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "[DONE]"
    assert events[0] == {"object": "job.progress", "stage": "waiting", "done": 0, "total": 0}
    assert {event["object"] for event in events[:-1]} == {"job.progress"}
    assert events[-1] == attribution(served, prompt="Once upon a time there was a dog")


def test_edits_come_with_receipts_and_warnings(served: Served) -> None:
    edit = {"layer": 0, "neuron": 1, "op": "scale", "value": 2.0, "positions": {"start": 1, "end": 2}}
    found = attribution(served, prompt="Once upon a time", interventions=[edit])
    assert found["interventions"][0]["positions_applied"] == 1
    assert found["warnings"][0].startswith("interventions[0] ") or found["interventions"][0]["active_before"]


def test_the_text_of_a_special_token_is_text_and_a_warning_says_so(served: Served) -> None:
    special = served.model.tokenizer.token_text(served.model.tokenizer.eos_id)
    found = attribution(served, prompt=f"Once{special} upon")
    assert [one["is_special"] for one in found["positions"]].count(True) == 1
    assert found["warnings"] == [
        f"prompt contains {special!r}, which was read as text; token ids can contain the special token"
    ]


BAD = [
    ({"prompt": ["a", "b"]}, "prompt", "one string or one list of token ids"),
    ({"prompt": ""}, "prompt", "must not be empty"),
    ({"prompt": [1, 10**6]}, "prompt[1]", "must be below the vocabulary's size"),
    ({"target": {"position": 0}}, "target.position", "must be from 1 to 5"),
    ({"target": {"position": 6}}, "target.position", "must be from 1 to 5 for a prompt of 5 tokens, got 6"),
    ({"target": {"position": -5}}, "target.position", "must be from 1 to 5"),
    ({"target": {"token": "two words"}}, "target.token", "must be one token"),
    ({"target": {"token": 10**6}}, "target.token", "must be below the vocabulary's size"),
    ({"target": {"token": 1.5}}, "target.token", "must be a token's id"),
    ({"target": {"layer": 1}}, "target.layer", "given together"),
    ({"target": {"layer": 3, "neuron": 1}}, "target.layer", "layer 3 is dense"),
    ({"target": {"layer": 1, "neuron": 64}}, "target.neuron", "must be below hidden_size (64)"),
    ({"target": {"layer": 1, "neuron": 1, "token": 5}}, "target.token", "must be left out"),
    ({"target": {"layer": 1, "neuron": 1}, "against": 5}, "against", "must be left out"),
    ({"against": -1}, "against", "must be a token's id"),
    ({"layers": [2]}, "layers", "layer 2 is dense"),
    ({"positions": {"start": 5}}, "positions.start", "must be below"),
    ({"positions": {"start": 3}, "target": {"position": 2}}, "positions", "before the target's (2)"),
    ({"positions": "generated"}, "positions", "can never apply"),
    ({"top_n": 501}, "top_n", "must be at most 500"),
    ({"min_effect": -0.1}, "min_effect", "must be at least 0"),
    ({"graph": True, "max_nodes": 33}, "max_nodes", "must be at most 32"),
    ({"graph": True, "max_nodes": 0}, "max_nodes", "must be at least 1"),
    (
        {"graph": True, "interventions": [{"layer": 0, "neuron": 1, "op": "ablate"}] * 50, "max_nodes": 20},
        "max_nodes",
        "must be at most 14 beside 50 interventions",
    ),
    ({"interventions": [{"layer": 2, "neuron": 1, "op": "ablate"}]}, "interventions[0].layer", "layer 2 is dense"),
    ({"timeout_s": 0}, "timeout_s", "must be greater than 0"),
    ({"word": "x"}, "word", "not a known field"),
    ({"model": "other"}, "model", "is not served here"),
]


@pytest.mark.parametrize(("fields", "param", "says"), BAD, ids=[str(param) for _, param, _ in BAD])
def test_bad_requests_are_refused_with_field_value_and_limit(
    served: Served, fields: Fields, param: str, says: str
) -> None:
    reply = served.post(PATH, **({"prompt": [0, 5, 6, 7, 8]} | fields))
    assert reply.status_code in (400, 404), reply.text
    error = reply.json()["error"]
    assert (error["param"], says in error["message"]) == (param, True), error


def test_what_would_take_too_long_is_refused_with_the_limit(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.requests.attributing.MAX_ATTRIBUTION_ROWS", 100)
    reply = served.post(PATH, prompt=[0, 5, 6, 7, 8])
    assert reply.json()["error"]["code"] == "attribution_too_large"
    assert "240 positions, must be at most 100" in reply.json()["error"]["message"]
    assert attribution(served, prompt=[0, 5, 6, 7, 8], layers=[1], positions={"start": -2})["num_neurons"] == 16


def test_edits_that_overflow_are_the_clients_fault(served: Served) -> None:
    edit = {"layer": 0, "neuron": 1, "op": "scale", "value": 1e4}
    edits = [{**edit, "op": "set"}, *[edit] * 12]
    reply = served.post(PATH, prompt=[0, 5, 6, 7, 8], interventions=edits)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "overflow")


def test_one_too_many_is_told_to_come_back(served: Served) -> None:
    jobs, limit = served.replica.side_jobs, served.replica.settings.max_side_jobs
    is_over = threading.Event()

    def hold(job: SideJob[str]) -> str:
        while not is_over.wait(0.01):
            job.checkpoint()
        return "held"

    async def hold_all() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(limit):
                tasks.create_task(result_of(jobs.run("lever", hold, timeout_s=30)))

    holding = threading.Thread(target=served.run, args=(hold_all(),))
    holding.start()
    assert wait_until(lambda: jobs.num_jobs == limit, 5)
    refused = served.post(PATH, prompt="Once upon a time")
    is_over.set()
    holding.join()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_jobs")
    assert int(refused.headers["Retry-After"]) >= 1
    assert attribution(served, prompt="Once upon a time")["num_neurons"]


def test_a_client_that_goes_ends_its_job(served: Served) -> None:
    body = {"model": MODEL_ID, "prompt": [0, *(3 + i % 90 for i in range(250))], "stream": True}
    with served.client.stream("POST", PATH, json=body) as reply:
        for line in reply.iter_lines():
            if '"neurons"' in line:
                break
    assert wait_until(lambda: served.replica.side_jobs.num_jobs == 0, 2)
    page = served.client.get("/metrics").text
    counted = [line for line in page.splitlines() if 'kind="attribution",outcome="cancelled"' in line]
    assert [line.rpartition(" ")[2] for line in counted] == ["1.0"]


def test_generations_and_attributions_beside_each_other_change_no_number(served: Served) -> None:
    prompt = "Once upon a time there was a dog"
    alone, text = attribution(served, prompt=prompt), served.complete(max_tokens=100, temperature=0)
    body = {"model": MODEL_ID, "prompt": "Once upon a time", "max_tokens": 100, "temperature": 0, "stream": True}
    with served.client.stream("POST", "/v1/completions", json=body) as reply:
        assert attribution(served, prompt=prompt) == alone
        written = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
    assert "".join(one["choices"][0]["text"] for one in written) == text["choices"][0]["text"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model made by hand: CAUSE's own coordinate switches on neuron SEEN at its position in layer 0, attention
    carries that to neuron TOLD of every later position in layer 1, and TOLD alone writes the token ANSWER."""
    folder = save_tiny_model(tmp_path_factory.mktemp("planted") / "model")
    config = tiny_text_config()
    config.tie_word_embeddings = False
    model = TopKLMForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        embedding, blocks = model.model.embed_tokens.weight, model.model.layers
        embedding[:, OTHER] = 1.0
        embedding[CAUSE] = 0.0
        embedding[CAUSE, CAUSED] = 1.0
        mlp = blocks[0].mlp
        mlp.gate_proj.weight[0, CAUSED] = mlp.up_proj.weight[0, CAUSED] = 1.0
        mlp.down_proj.weight[SEEN, 0] = 0.1
        attention = blocks[1].self_attn
        attention.v_proj.weight[0, SEEN] = 1.0  # of the first key head, which the first query head reads
        attention.o_proj.weight[TOLD, 0] = 1.0
        model.lm_head.weight[ANSWER, TOLD] = 10.0
    model.save_pretrained(folder)
    with serve_app(folder) as service:
        yield service


CAUSE, ANSWER = 20, 30
CAUSED, OTHER, SEEN, TOLD = 4, 6, 10, 12


def test_a_planted_circuit_is_found_with_its_edge(planted: Served) -> None:
    ids = [0, 40, 41, CAUSE, 42, 43, 44]
    found = attribution(planted, prompt=ids, graph=True, max_nodes=4)
    assert found["target"]["token"]["token_id"] == ANSWER
    seen, told = sorted(found["neurons"][:2], key=lambda one: one["layer"])
    assert (told["position"], told["layer"], told["neuron"]) == (6, 1, TOLD)
    assert (seen["position"], seen["layer"], seen["neuron"]) == (3, 0, SEEN)
    others = [neuron for neuron in found["neurons"] if neuron["neuron"] not in (TOLD, SEEN)]
    assert max(abs(neuron["effect"]) for neuron in others) < told["effect"] / 10
    assert max(found["positions"], key=lambda one: one["effect"])["position"] in (3, 6)
    nodes = {(node["position"], node["neuron"]): node["id"] for node in found["graph"]["nodes"]}
    edges = {(edge["source"], edge["target"]): edge for edge in found["graph"]["edges"]}
    edge = edges[nodes[3, SEEN], nodes[6, TOLD]]
    assert edge["share"] == pytest.approx(1.0)  # without SEEN, TOLD is not active
    assert found["graph"]["share"] == pytest.approx(1.0, abs=0.1)
    # The walk back: what holds TOLD up is SEEN.
    target = {"position": 6, "layer": 1, "neuron": TOLD}
    back = attribution(planted, prompt=ids, target=target)
    assert (back["neurons"][0]["position"], back["neurons"][0]["neuron"]) == (3, SEEN)
    assert back["neurons"][0]["effect"] == pytest.approx(back["target"]["score"])


def test_a_model_without_the_cause_has_no_such_circuit(planted: Served) -> None:
    found = attribution(planted, prompt=[0, 40, 41, 42, 43], target={"token": ANSWER})
    assert max(abs(neuron["effect"]) for neuron in found["neurons"]) < 1e-6


@pytest.fixture(scope="module")
def served_by_torch(tiny_model_path: Path) -> Iterator[Served]:
    with serve_app(tiny_model_path, cpu_step="torch") as service:
        yield service


def test_torch_gives_what_the_compiled_step_gives(served: Served, served_by_torch: Served) -> None:
    body = {"prompt": ids_of(served, "Once upon a time there was a dog"), "graph": True, "top_n": 100}
    ours, theirs = attribution(served, **body), attribution(served_by_torch, **body)
    assert theirs["target"]["score"] == pytest.approx(ours["target"]["score"], abs=1e-4)
    for name in ("positions", "layers"):
        effects = [[one["effect"] for one in reply[name]] for reply in (ours, theirs)]
        assert effects[0] == pytest.approx(effects[1], abs=1e-4)
    by_place = {(n["position"], n["layer"], n["neuron"]): n["effect"] for n in theirs["neurons"]}
    for neuron in ours["neurons"][:50]:
        place = neuron["position"], neuron["layer"], neuron["neuron"]
        assert by_place[place] == pytest.approx(neuron["effect"], abs=1e-4)
