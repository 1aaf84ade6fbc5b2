"""A side of the comparison as a process that sleeps until it is its turn: one JSON object a line, in and out.

Light, and for any environment: nothing here but the standard library.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What is asked of a side: to generate, over and over, until `min_s` have passed."""

    case: str  # of those that the side has
    num_rows: int
    num_tokens: int  # to generate for each row
    seed: int  # of the prompts; those of later repetitions count up from it
    min_s: float


@dataclass(frozen=True, kw_only=True)
class Done:
    """What came of a turn."""

    num_tokens: int
    elapsed_s: float
    #: Of the time after the last prompt was read; None if the side does not say.
    decode_tokens_per_s: float | None = None

    @property
    def tokens_per_s(self) -> float:
        """New tokens, the reading of prompts within the time."""
        return self.num_tokens / self.elapsed_s


#: (case, rows, tokens, seed of the prompts) → tokens; those after the last prompt was read, and their seconds, or 0.
Generate = Callable[[str, int, int, int], tuple[int, int, float]]


#: How a side does a turn.
Measure = Callable[[Turn], Done]


def repeat(generate: Generate, turn: Turn) -> Done:
    """Generate until the turn is over."""
    num_tokens, num_decoded, decode_s, seed = 0, 0, 0.0, turn.seed
    began = time.perf_counter()
    while (elapsed_s := time.perf_counter() - began) < turn.min_s or num_tokens == 0:
        tokens, decoded, seconds = generate(turn.case, turn.num_rows, turn.num_tokens, seed)
        num_tokens, num_decoded, decode_s, seed = (
            num_tokens + tokens,
            num_decoded + decoded,
            decode_s + seconds,
            seed + 1,
        )
    return Done(
        num_tokens=num_tokens,
        elapsed_s=elapsed_s,
        decode_tokens_per_s=num_decoded / decode_s if decode_s else None,
    )


def serve(load: Callable[[], tuple[dict[str, Any], Measure]]) -> None:
    """Answer turns from standard input until it ends. What libraries print goes to standard error.

    Args:
        load: loads the model; facts for the report, and how to do a turn.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(fields: dict[str, Any]) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        facts, measure = load()
    except Exception as error:  # whatever it is, the report says it
        answer({"error": f"{type(error).__name__}: {error}"[:500]})
        return
    answer({"facts": facts})
    for line in sys.stdin:
        try:
            answer(asdict(measure(Turn(**json.loads(line)))))
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"[:500]})
    os._exit(0)  # nothing is left to be saved, and vLLM takes long to end by itself
