"""What clients are told of requests that are served and do less than they may mean."""

import pytest

from service.answers.warnings import receipt_warnings
from service.engine.request import EngineRequest
from tests.support.service.plans import completion, receipt
from tests.support.small_vocabulary import small_tokenizer
from topk_model.interventions import Condition, Intervention


def test_edits_that_did_nothing_are_warned_of() -> None:
    nowhere = receipt(positions_applied=0, first=None, last=None, mean_before=None, mean_after=None, num_applications=0)
    edits = [Intervention(layers=(0,), neuron=1, op="set")] * 3
    request = EngineRequest(request_id="r", prompt_ids=(0, 5), max_tokens=4, interventions=tuple(edits))
    receipts = (receipt(), nowhere, receipt(num_changed=0))
    warnings = list(receipt_warnings(receipts, request, num_generated=3, choice=2))
    assert len(warnings) == 2
    assert warnings[0].startswith("choices[2].interventions[1] was not applied")
    assert warnings[1].startswith("choices[2].interventions[2] changed nothing")


@pytest.mark.parametrize(
    ("edit", "changes", "says"),
    [
        ({"start": 2}, {}, 'begin at 2, but the last one whose state chose a token was 1; {"start": -1} begins there'),
        ({"start": 7}, {"num_generated": 3}, "begin at 7, but the last one whose state chose a token was 3"),
        ({"conditions": (Condition(layer=0, neuron=1, test="active"),)}, {}, "met its conditions"),
        ({}, {}, "every token in its positions is special, and special tokens count only"),
        ({"op": "scale"}, {"receipt": receipt(num_changed=0, active_before=0)}, 'scale does not change 0; use "add"'),
        (
            {"op": "ablate"},
            {"receipt": receipt(num_changed=0, active_before=0)},
            "the neuron was not active at these positions",
        ),
        ({"op": "clamp"}, {"receipt": receipt(num_changed=0)}, "within the bounds"),
        ({"op": "scale", "value": 1.0}, {"receipt": receipt(num_changed=0)}, "already had that value"),
        ({"site": "pre_topk"}, {"receipt": receipt(active_before=0)}, "never came among the k largest"),
    ],
)
def test_a_warning_says_why_an_edit_did_nothing(edit: dict, changes: dict, says: str) -> None:
    intervention = Intervention(**{"layers": (0,), "neuron": 1, "op": "set", **edit})
    request = EngineRequest(request_id="r", prompt_ids=(0, 5), max_tokens=9, interventions=(intervention,))
    of = changes.get("receipt", receipt(positions_applied=0, num_applications=0))
    (warning,) = receipt_warnings((of,), request, changes.get("num_generated", 1), choice=0)
    assert says in warning
    fine = receipt(active_before=0, evicted=1)
    assert not list(receipt_warnings((fine,), request, 3, choice=0))


def warned(**fields: object) -> list[list[str]]:
    return [list(row.warnings) for row in completion(**fields).rows]


def test_an_edit_of_generated_tokens_is_told_that_it_misses_the_first() -> None:
    edit = {"layer": 0, "neuron": 1, "op": "ablate"}
    late, early = edit | {"positions": "generated"}, edit | {"positions": "continuation"}
    (((text,),)) = warned(interventions=[early, late])
    assert text.startswith("interventions[1].positions begin with the first generated token")
    assert '{"start": -1}' in text
    assert warned(interventions=[late], compare=True, n=2) == [[], [], [text.replace("[1]", "[0]", 1)], []]
    assert warned(interventions=[edit | {"positions": {"start": 6}}])[0]
    for positions in ("all", "prompt", "continuation", {"start": -1}, {"start": 7}, {"end": -1}):
        assert warned(interventions=[edit | {"positions": positions}]) == [[]]
    assert warned(interventions=[edit], max_tokens=0, echo=True) == [[]]


def test_a_prompt_that_looks_like_control_tokens_is_text_and_told_so() -> None:
    (((text,),)) = warned(prompt="Once<|eos|>")
    assert text.startswith("prompt contains '<|eos|>', which was read as text")
    assert warned(prompt=["a", "<|eos|>"], n=2) == [[], [], [text.replace("prompt", "prompt[1]", 1)], []]
    assert warned(prompt="Once<|eos|>", parse_special=False) == [[]]
    assert warned(prompt="Once<|eos|>", parse_special=True) == [[]]
    eos = small_tokenizer().eos_id
    assert eos not in completion(prompt="Once<|eos|>").rows[0].request.prompt_ids
    assert completion(prompt="Once<|eos|>", parse_special=True).rows[0].request.prompt_ids[-1] == eos
