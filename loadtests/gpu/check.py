"""All GPU checks, in one run of about ten minutes and one JSON file:

    python -m loadtests.gpu.check --output gpu.json

The tests that need a CUDA device and those of the engine, which use one if there is one; logits, neuron sets and tokens
compared with the CPU's; tokens per second compared with transformers, and vLLM if it is installed; how often the host
waits for the GPU in a step, which may be once; the gain of capturing the step in a CUDA graph. Ends with status 1 if a
test fails or the host waits more often.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from loadtests.gpu import parity, speed
from topk_model.configuration import TopKLMConfig
from topk_model.model_folder import DEFAULT_MODEL

ROOT = Path(__file__).parent.parent.parent
#: About 300 million parameters.
LARGE = TopKLMConfig(
    vocab_size=32_000,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=16,
    num_attention_heads=16,
    num_key_value_heads=8,
    max_position_embeddings=2048,
    topk_k=64,
    n_nontopk=4,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)


def run_tests() -> dict[str, Any]:
    """The tests marked gpu, wherever they are, and the engine's; returns pytest's last output."""
    found = {}
    chosen = {"gpu": ["-m", "gpu", "tests/model"], "engine": ["tests/engine", "tests/model/test_editing.py"]}
    for name, arguments in chosen.items():
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        lines = done.stdout.strip().splitlines()
        found[name] = {"status": done.returncode, "says": lines[-1] if lines else done.stderr[-500:]}
    return found


def machine(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"device": str(device), "torch": torch.__version__, "cuda": torch.version.cuda}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["memory_gb"] = torch.cuda.get_device_properties(device).total_memory / 1e9
    return found


def faults(report: dict[str, Any]) -> list[str]:
    """The requirements that are not met."""
    found = [f"tests: {name}: {run['says']}" for name, run in report.get("tests", {}).items() if run["status"]]
    for shape, measured in report["speed"].items():
        for rows, figures in measured["rows"].items():
            for name in ("host_waits_per_step", "host_waits_per_step_with_an_edit_in_every_row"):
                if (figures[name] or 0) > 1:
                    found.append(f"{shape}, {rows} rows: {name} is {figures[name]:g}, must be at most 1")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="the model to compare")
    parser.add_argument("--device", default="cuda", help="cpu tries this script without a GPU")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 256], help="sequences at once")
    parser.add_argument("--num-tokens", type=int, default=64, help="tokens that each sequence generates")
    parser.add_argument("--small", action="store_true", help="leave out the large shape")
    parser.add_argument("--no-tests", action="store_true", help="leave out the tests")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device; --device cpu tries the script without one", file=sys.stderr)
        return 2
    began = time.monotonic()
    report: dict[str, Any] = {"machine": machine(device)}
    if not given.no_tests:
        report["tests"] = run_tests()
    dtypes = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
    report["beside_the_cpu"] = [parity.compare(given.model, device, dtype) for dtype in dtypes]
    shapes = {"default": TopKLMConfig.from_pretrained(given.model)} | ({} if given.small else {"large": LARGE})
    report["speed"] = {
        name: speed.measure(config, device, dtypes[-1], given.rows, given.num_tokens) for name, config in shapes.items()
    }
    report["faults"] = faults(report)
    report["seconds"] = time.monotonic() - began
    given.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{given.output}: {len(report['faults'])} faults, {report['seconds']:.0f} s")
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
