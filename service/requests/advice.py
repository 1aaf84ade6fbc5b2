"""Warnings that are known before anything runs: about requests that are served but may be a mistake."""

from collections.abc import Sequence

from topk_model.interventions import Intervention


def unread_special(path: str, special: str) -> str:
    """The warning for a prompt with the text of a special token, if the request does not say how to read it."""
    return (
        f"{path} contains {special!r}, which was read as text; set parse_special to true to read it as the special "
        "token, or to false to suppress this warning"
    )


def never_special(path: str, special: str) -> str:
    """The warning for such a prompt of a request that can only have it as text."""
    return f"{path} contains {special!r}, which was read as text; token ids can contain the special token"


def late_edits(edits: Sequence[Sequence[Intervention]], lengths: Sequence[int]) -> tuple[str, ...]:
    """The warning for edits that begin with the first generated token.

    Args:
        edits: those of each prompt; every prompt has the same number.
        lengths: number of tokens in each prompt.
    """
    late = [
        any(of_prompt[i].start == length for of_prompt, length in zip(edits, lengths, strict=True))
        for i in range(len(edits[0]))
    ]
    return tuple(
        f"interventions[{i}].positions begin with the first generated token, which is chosen by the state of the "
        'prompt\'s last token and is therefore not steered; "continuation", which is {"start": -1}, steers it too'
        for i, is_late in enumerate(late)
        if is_late
    )
