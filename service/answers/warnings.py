"""Why an edit did nothing, from its receipt and from what was asked. Knows no transport."""

from collections.abc import Iterator

from service.engine.request import EngineRequest
from topk_model.interventions import Intervention, Receipt


def receipt_warnings(
    receipts: tuple[Receipt, ...], request: EngineRequest, num_generated: int, choice: int
) -> Iterator[str]:
    """What the client should know of edits that did nothing.

    Args:
        receipts: of the request's interventions, or none if it has not ended.
        num_generated: tokens that were generated.
        choice: index of the choice.
    """
    # What chose no token was not steered: the last one was not read, unless it is the prompt's.
    num_read = len(request.prompt_ids) + max(0, num_generated - 1)
    for i, (receipt, edit) in enumerate(zip(receipts, request.interventions, strict=False)):
        path = f"choices[{choice}].interventions[{i}]"
        if receipt.positions_applied == 0:
            yield f"{path} was applied nowhere: {why_nowhere(edit, len(request.prompt_ids), num_read)}"
        elif receipt.num_changed == 0:
            yield f"{path} changed nothing: {why_unchanged(edit, receipt)}"
        elif edit.site == "pre_topk" and receipt.active_before == receipt.evicted == 0:
            yield (
                f"{path} changed nothing that was handed on: the neuron never won a place among the k kept ones; use "
                'a larger value, or site "post_topk", which forces it'
            )


def why_nowhere(edit: Intervention, num_prompt: int, num_read: int) -> str:
    if edit.start >= num_read:
        reason = f"its positions begin at {edit.start}, and the last one whose state chose a token was {num_read - 1}"
        return reason if edit.start != num_prompt else f'{reason}; {{"start": -1}} begins there'
    if edit.conditions:
        return "no token in its positions met its conditions (special tokens count only with include_special)"
    return "every token in its positions is a special one, and those count only with include_special"


def why_unchanged(edit: Intervention, receipt: Receipt) -> str:
    if edit.op in ("scale", "ablate") and receipt.active_before == 0:
        return f'the neuron was active at none of these positions, and {edit.op} leaves 0 as it is; use "add" or "set"'
    if edit.op == "clamp":
        return "the neuron was within the bounds wherever it was applied"
    return "the neuron had the value already wherever it was applied"
