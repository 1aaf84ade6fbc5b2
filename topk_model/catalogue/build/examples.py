"""Which pieces of text represent a neuron: the passages in which it fires most, and its strongest firings.

The strongest firings alone mislead if the vocabulary is small: the few tokens at which a neuron of soldiers, enemies
and cavalry is strongest may be pieces of words. A passage in which it fires at many different tokens shows what they
have in common. Knows no model and no file.
"""

import numpy as np
from numpy.typing import NDArray

from topk_model.catalogue.build.texts import Texts

#: What a piece of a longer word counts in a passage.
PIECE_WEIGHT = 0.25
#: So many tokens in a row are the same text: an example that shares them with one before it is left out.
DISTINCT_TOKENS = 6


def top_positions(positions: NDArray[np.int32], strength: NDArray[np.float32], texts: Texts, count: int) -> list[int]:
    """Positions of up to `count` strongest firings, strongest first, at most one per window.

    None repeats the last `DISTINCT_TOKENS` tokens up to a stronger one.

    Args:
        positions: where the neuron fires, in tokens, ascending.
        strength: how strongly, of the same shape.
    """
    found: list[int] = []
    windows: set[int] = set()
    contexts: list[bytes] = []
    for position in positions[np.argsort(-strength, kind="stable")].tolist():
        if len(found) == count:
            break
        window, first, _ = texts.bounds(position)
        if window in windows:
            continue
        context = texts.ids[max(first, position + 1 - DISTINCT_TOKENS) : position + 1].tobytes()
        if any(context.endswith(other) or other.endswith(context) for other in contexts):  # a window may cut it short
            continue
        windows.add(window)
        contexts.append(context)
        found.append(position)
    return found


def top_passages(
    positions: NDArray[np.int32],
    values: NDArray[np.float32],
    texts: Texts,
    length: int,
    count: int,
    is_piece: NDArray[np.bool_] | None = None,
) -> list[tuple[int, int]]:
    """Up to `count` passages in which a neuron fires most, in descending order: the best of each window.

    What counts is the sum of activation² over the tokens at which it fires, so that they show what it fires on
    strongly, a token that comes again counted once: else its commonest token would fill them. A piece of a longer word
    counts `PIECE_WEIGHT` times that: words show a neuron better. None shares `DISTINCT_TOKENS` tokens in a row with one
    before it.

    Args:
        positions: where the neuron fires, in tokens, ascending.
        values: its activations there, of the same shape.
        length: of a passage, in tokens; shorter where the window is.
        is_piece: which positions of the texts are pieces of longer words (default: none).

    Returns:
        First token and the one after the last, of each passage; its firings stand in the middle.
    """
    if not len(positions):
        return []
    # The best passage of a window begins at a firing. That at firing i includes firing j if j is less than `length`
    # tokens on, in the same window, and the last firing at the same token is before i.
    windows = np.searchsorted(texts.starts, positions, side="right") - 1
    limits = np.minimum(positions + length, texts.starts[windows + 1])
    ids, strength = texts.ids[positions], np.square(values.astype(np.float64))
    if is_piece is not None:
        strength = np.where(is_piece[positions], PIECE_WEIGHT * strength, strength)
    by_token = np.argsort(ids, kind="stable")
    before = np.full(len(positions), -1, dtype=np.int64)
    is_again = ids[by_token[1:]] == ids[by_token[:-1]]
    before[by_token[1:][is_again]] = positions[by_token[:-1][is_again]]
    sums = np.zeros(len(positions))
    last = positions.copy()
    for ahead in range(min(length, len(positions))):
        here = slice(None, len(positions) - ahead)
        is_inside = positions[ahead:] < limits[here]
        if not is_inside.any():
            break
        sums[here] += np.where(is_inside & (before[ahead:] < positions[here]), strength[ahead:], 0)
        last[here][is_inside] = positions[ahead:][is_inside]

    found: list[tuple[int, int]] = []
    used: set[int] = set()
    known: set[bytes] = set()
    for i in np.argsort(-sums, kind="stable").tolist():
        if len(found) == count:
            break
        window = int(windows[i])
        if window in used:
            continue
        used.add(window)
        spare = length - int(last[i] + 1 - positions[i])
        begin, end = stretch(int(positions[i]), spare // 2, length, texts)
        ids_of = texts.ids[begin:end]
        runs = {ids_of[at : at + DISTINCT_TOKENS].tobytes() for at in range(max(1, len(ids_of) + 1 - DISTINCT_TOKENS))}
        if runs & known:
            continue
        known |= runs
        found.append((begin, end))
    return found


def stretch(position: int, before: int, length: int, texts: Texts) -> tuple[int, int]:
    """`length` tokens of text, `before` of them before a position, moved and cut where its window ends.

    Returns:
        The first token and the one after the last.
    """
    _, first, stop = texts.bounds(position)
    begin = max(first, min(position - before, stop - length))
    return begin, min(stop, begin + length)
