"""The compiled step under the sanitizers of addresses and of undefined behaviour: its tests once more, in a process
into which their runtime is loaded first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.engine.native import build

ROOT = Path(__file__).parents[2]
#: Loaded before all else; the one of C++ so that the sanitizer finds what throws.
RUNTIMES = ("libasan.so", "libubsan.so", "libstdc++.so.6")


def runtimes() -> str:
    """Paths of the compiler's runtimes, for LD_PRELOAD; skips the test if there are none."""
    try:
        build.best_isa()
        compiler = build.find_compiler()
    except build.BuildError as error:
        pytest.skip(f"no compiled step: {error}")
    paths = []
    for name in RUNTIMES:
        told = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, timeout=30)
        path = Path(told.stdout.strip())
        if not path.is_absolute():
            pytest.skip(f"{compiler} has no sanitizers: its {name} is nowhere")
        paths.append(str(path.resolve()))
    return ":".join(paths)


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "LD_PRELOAD": runtimes(),
        # Python and torch keep what they have until the end.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # The caller's arrays each in an allocation of their own, with a guard around it.
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # it compiles, and each access to memory is checked
def test_tests_of_the_compiled_step_are_clean_under_sanitizers() -> None:
    done = run(
        *("-m", "pytest", "-q", "-s", "-p", "tests.support.sanitizers", "-p", "no:cacheprovider", "--timeout", "600"),
        *("tests/engine/test_native_interface.py", "tests/engine/test_native_invariance.py"),
        # The others are about other builds, or about threads and memory, of which the sanitizer has its own.
        *("-k", "not every_instruction_set and not threads_end and not beyond_all_memory"),
        TOPK_MIXTURES="36",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    assert "passed" in done.stdout


@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_array_that_is_too_short_does_not_pass_the_sanitizers() -> None:
    """The witness of the test above: it would have seen it."""
    code = """
import numpy as np
from service.engine.native import binding, build
from tests.support.engine.native import GOOD
from tests.support import sanitizers
engine = binding.NativeEngine(binding.load_library(build.library()), **GOOD)
short = np.zeros(3, dtype=np.float32)
engine._library.topk_load(engine._handle, binding.WEIGHTS["norm1"], 0, short.ctypes.data, 1, GOOD["hidden_size"])
"""
    done = run("-c", code)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr, done.stderr[-4000:]
