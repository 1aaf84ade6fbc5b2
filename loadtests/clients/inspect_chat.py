"""inspect_ai: a task of three samples, with its provider for OpenAI-compatible servers and with that for vLLM.

Run it as `python inspect_chat.py URL MODEL`.
"""

import os
import sys
import tempfile

import inspect_ai
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import chain_of_thought, generate, system_message

SAMPLES = [Sample(input=f"What is {n} plus {n}?", target=str(2 * n)) for n in (1, 2, 3)]


def main(url: str, model: str) -> None:
    os.environ["TOPK_API_KEY"] = "none"
    config = GenerateConfig(max_tokens=16, temperature=0, seed=1, top_p=1, stop_seqs=["\n\n"], logprobs=True)
    served = get_model(f"openai-api/topk/{model}", base_url=f"{url}/v1", config=config)
    task = inspect_ai.Task(
        dataset=SAMPLES, solver=[system_message("Be brief."), chain_of_thought(), generate()], scorer=includes()
    )
    with tempfile.TemporaryDirectory() as folder:
        (log,) = inspect_ai.eval(task, model=served, log_dir=folder, display="none")
        assert log.status == "success", log.error
        assert log.samples is not None
        for sample in log.samples:
            assert sample.error is None, sample.error
        print(f"inspect_ai: {len(log.samples)} samples, {log.stats.model_usage}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
