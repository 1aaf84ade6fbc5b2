"""loadtests/gpu: the script for a machine with a GPU, tried on the CPU, where everything but the GPU's own is there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loadtests.gpu.check import faults
from tests.support.tools import ROOT


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_measures_and_writes_one_file(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "loadtests.gpu.check", "--output", str(output), "--device", "cpu", "--no-tests"]
    done = subprocess.run(
        [*command, "--small", "--rows", "2", "--num-tokens", "4"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(output.read_text())
    (beside,) = report["beside_the_cpu"]
    assert beside["share_of_positions_whose_neuron_set_differs"] == 0
    assert beside["share_of_greedy_sequences_that_are_the_same"] == 1
    figures = report["speed"]["default"]["rows"]["2"]
    assert figures["engine_tokens_per_s"] > 0
    assert figures["transformers_tokens_per_s"] > 0


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, "-m", "loadtests.gpu.check", "--output", "unused.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no CUDA device" in done.stderr


def test_a_host_that_waits_more_than_once_a_step_is_a_fault() -> None:
    rows = {
        "1": {"host_waits_per_step": 1.0, "host_waits_per_step_with_an_edit_in_every_row": None},
        "32": {"host_waits_per_step": 1.0, "host_waits_per_step_with_an_edit_in_every_row": 2.5},
    }
    (found,) = faults({"speed": {"default": {"rows": rows}}})
    assert found == "default, 32 rows: host_waits_per_step_with_an_edit_in_every_row is 2.5, must be at most 1"
