"""The evaluation harness of EleutherAI, model type local-completions, compared with its own results for the weights.

Five choices for each of several passages (loglikelihood), the passages' perplexity (loglikelihood_rolling), and the
model's continuations (generate_until). The data is made here, from text on which the model was not trained.
Needs topk_model besides lm_eval: the same weights are loaded by transformers. Run it as
`python lm_eval_check.py URL MODEL FOLDER_OF_THE_MODEL`.
"""

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from topk_model.checkpoints import load_model
from topk_model.generate import continue_text

NUM_PASSAGES = 24
TOLERANCE = 1e-4
CHOICES = {
    "task": "topk_choices",
    "output_type": "multiple_choice",
    "doc_to_text": "{{before}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}
ROLLING = {
    "task": "topk_rolling",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}],
}
WRITING = {
    "task": "topk_writing",
    "output_type": "generate_until",
    "doc_to_text": "{{before}}",
    "doc_to_target": "{{text}}",
    "generation_kwargs": {"until": ["\n\n", ". "], "max_gen_toks": 24, "do_sample": False, "temperature": 0.0},
    "metric_list": [{"metric": "exact_match"}],
}


def passages(folder: Path, model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """Passages of the held-out text, each cut in two, with three wrong endings from other passages, and with the few
    words that the model itself would generate."""
    ids = np.load(next(folder.glob("held_out/validation.npy")))
    rng = random.Random(0)
    texts = [tokenizer.decode(ids[i : i + 40]) for i in rng.sample(range(len(ids) - 40), NUM_PASSAGES)]
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
    rows = []
    for i, (before, after) in enumerate(halves):
        others = rng.sample([end for j, (_, end) in enumerate(halves) if j != i], 3)
        answer = rng.randrange(4)
        others.insert(answer, after)
        others.append(continue_text(model, tokenizer, before, max_tokens=3, temperature=0, seed=0))
        rows.append({"text": before + after, "before": before, "choices": others, "answer": answer})
    return rows


def write_tasks(place: Path, rows: list[dict[str, Any]]) -> list[str]:
    (place / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place / "rows.json")}},
        "test_split": "test",
    }
    for task in (CHOICES, ROLLING, WRITING):
        (place / f"{task['task']}.yaml").write_text(yaml.safe_dump(data | task))
    return [str(task["task"]) for task in (CHOICES, ROLLING, WRITING)]


def answers(results: dict[str, Any], name: str) -> list[Any]:
    """The model's answer to each request of a task, in order."""
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    return [answer for sample in samples for answer in sample["filtered_resps"]]


def main(url: str, model_id: str, folder: str) -> None:
    model, tokenizer = load_model(folder, device="cpu")
    context = model.config.max_position_embeddings
    with tempfile.TemporaryDirectory() as made:
        names = write_tasks(Path(made), passages(Path(folder), model, tokenizer))
        manager = TaskManager(include_path=made)
        common = {"tasks": names, "task_manager": manager, "log_samples": True, "bootstrap_iters": 0}
        ours = simple_evaluate(
            model="local-completions",
            model_args={
                "model": model_id,
                "base_url": f"{url}/v1/completions",
                "tokenizer": folder,
                "tokenizer_backend": "huggingface",
                "add_bos_token": True,  # as in the model's training; by default only the other model type does so
                "max_length": context,
                "num_concurrent": 1,  # with more, too many rows wait: 429
            },
            batch_size=64,
            **common,
        )
        theirs = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, add_bos_token=True), **common
        )
    scored = np.array([answers(run, names[0]) for run in (ours, theirs)], dtype=object)
    logprobs, greedy = scored[..., 0].astype(float), scored[..., 1].astype(str)
    rolling = np.array([answers(run, names[1]) for run in (ours, theirs)], dtype=float)
    written = [answers(run, names[2]) for run in (ours, theirs)]
    for name, pair in (("loglikelihood", logprobs), ("loglikelihood_rolling", rolling)):
        print(f"{name}: {pair.shape[1]} requests, largest difference {np.abs(pair[0] - pair[1]).max():.2e} nats")
        print(f"  ours   {np.round(pair[0][:5], 5)}\n  theirs {np.round(pair[1][:5], 5)}")
    print(f"is_greedy: {(greedy[0] == greedy[1]).sum()} of {greedy.shape[1]} agree, {(greedy[0] == 'True').sum()} true")
    print(f"generate_until: {sum(a == b for a, b in zip(*written, strict=True))} of {len(written[0])} texts agree")
    for name in names[:2]:
        print(name, *({k: v for k, v in run["results"][name].items() if "," in k} for run in (ours, theirs)))
    assert np.abs(logprobs[0] - logprobs[1]).max() < TOLERANCE
    assert np.abs(rolling[0] - rolling[1]).max() < TOLERANCE
    assert (greedy[0] == greedy[1]).all()
    assert written[0] == written[1]


if __name__ == "__main__":
    main(*sys.argv[1:4])
