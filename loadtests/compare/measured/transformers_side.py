"""transformers' `generate` on the plain Llama: `python -m … SHAPE FOLDER NUM_THREADS`."""

import sys
from functools import partial
from typing import Any

import torch
import transformers
from transformers import LlamaForCausalLM

from loadtests.compare.measured.worker import Measure, repeat, serve
from loadtests.compare.shapes import BY_NAME, prompts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load() -> tuple[dict[str, Any], Measure]:
    name, folder, num_threads = sys.argv[1:]
    torch.set_num_threads(int(num_threads))
    shape = BY_NAME[name]
    models: dict[str, Any] = {
        key: LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval() for key, dtype in DTYPES.items()
    }

    @torch.inference_mode()
    def generate(case: str, num_rows: int, num_tokens: int, seed: int) -> tuple[int, int, float]:
        ids = torch.tensor(prompts(shape, num_rows, seed))
        asked = {"do_sample": False, "min_new_tokens": num_tokens, "max_new_tokens": num_tokens}
        output = models[case].generate(input_ids=ids, attention_mask=torch.ones_like(ids), **asked)
        return (output.shape[1] - ids.shape[1]) * num_rows, 0, 0.0

    return {"version": transformers.__version__, "torch": torch.__version__}, partial(repeat, generate)


if __name__ == "__main__":
    serve(load)
