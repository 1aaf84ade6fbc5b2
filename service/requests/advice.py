"""Warnings that are known before anything runs: a request that is served, and may have been meant otherwise."""

from collections.abc import Sequence

from topk_model.interventions import Intervention


def unread_special(path: str, special: str) -> str:
    """Of a prompt that holds the text of a special token, and says nothing of how to read it."""
    return (
        f"{path} holds {special!r}, which was read as text: with parse_special true it is the special token, with "
        "parse_special false this warning goes"
    )


def late_edits(edits: Sequence[Sequence[Intervention]], lengths: Sequence[int]) -> tuple[str, ...]:
    """Of edits that begin with the first generated token.

    Args:
        edits: those of each prompt, as many for each.
        lengths: tokens of each prompt.
    """
    late = [
        any(of_prompt[i].start == length for of_prompt, length in zip(edits, lengths, strict=True))
        for i in range(len(edits[0]))
    ]
    return tuple(
        f"interventions[{i}].positions begin with the first generated token, which the state before it chose, that of "
        'the prompt\'s last token: it is not steered; "continuation", which is {"start": -1}, steers it, too'
        for i, is_late in enumerate(late)
        if is_late
    )
