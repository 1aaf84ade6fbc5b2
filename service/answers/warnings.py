"""Why an edit had no effect, from its receipt and the request. Knows no transport."""

from collections.abc import Iterator

from service.engine.request import EngineRequest
from topk_model.interventions import Intervention, Receipt


def receipt_warnings(
    receipts: tuple[Receipt, ...], request: EngineRequest, num_generated: int, choice: int
) -> Iterator[str]:
    """Warnings about edits that had no effect.

    Args:
        receipts: those of the request's interventions; empty if it has not ended.
        num_generated: number of generated tokens.
        choice: the choice's index.
    """
    # A state that chose no token was not edited: the last token was not read, unless it is the prompt's.
    num_read = len(request.prompt_ids) + max(0, num_generated - 1)
    for i, (receipt, edit) in enumerate(zip(receipts, request.interventions, strict=False)):
        path = f"choices[{choice}].interventions[{i}]"
        if receipt.positions_applied == 0:
            yield f"{path} was not applied: {why_nowhere(edit, len(request.prompt_ids), num_read)}"
        elif receipt.num_changed == 0:
            yield f"{path} changed nothing: {why_unchanged(edit, receipt)}"
        elif edit.site == "pre_topk" and receipt.active_before == receipt.evicted == 0:
            yield (
                f"{path} changed nothing in the output: the neuron never came among the k largest; use "
                'a larger value, or site "post_topk", which forces it'
            )


def why_nowhere(edit: Intervention, num_prompt: int, num_read: int) -> str:
    if edit.start >= num_read:
        reason = f"its positions begin at {edit.start}, but the last one whose state chose a token was {num_read - 1}"
        return reason if edit.start != num_prompt else f'{reason}; {{"start": -1}} begins there'
    if edit.conditions:
        return "no token in its positions met its conditions (special tokens count only with include_special)"
    return "every token in its positions is special, and special tokens count only with include_special"


def why_unchanged(edit: Intervention, receipt: Receipt) -> str:
    if edit.op in ("scale", "ablate") and receipt.active_before == 0:
        return f'the neuron was not active at these positions, and {edit.op} does not change 0; use "add" or "set"'
    if edit.op == "clamp":
        return "the neuron was already within the bounds wherever it was applied"
    return "the neuron already had that value wherever it was applied"
