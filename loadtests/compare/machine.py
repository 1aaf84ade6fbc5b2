"""The machine: its name, and the rates that a small program reaches in reading memory and in multiplying and adding.

The program is compiled like the step, for the same instruction set, and uses as many threads.
"""

import ctypes
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from service.engine.native import build

SOURCE = Path(__file__).with_name("machine.cpp")
#: Far more than any cache holds.
LARGE_BYTES = 1 << 30
NUM_TRIES = 3


def processor_name() -> str:
    """As the system names it, with family and model, since the name alone may say little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    name = fields.get("model name", platform.machine())
    return f"{name} ({', '.join(numbers)})" if numbers else name


def facts() -> dict[str, Any]:
    """What the report says of the machine, before anything runs on it."""
    try:
        instructions = build.best_isa()
    except build.BuildError as error:
        instructions = f"none of the compiled step's: {error}"
    return {
        "processor": processor_name(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "instructions": instructions,
        "load_before": os.getloadavg()[0],
        "system": platform.release(),
        "python": platform.python_version(),
    }


class MachineBench:
    """The small program, compiled.

    Raises:
        build.BuildError: it cannot be.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "machine.so"
            flags = (*build.FLAGS, *build.ISA_FLAGS[build.best_isa()])
            command = [build.find_compiler(), *flags, str(SOURCE), "-o", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=build.COMPILE_TIMEOUT_S)
            if done.returncode:
                raise build.BuildError(f"{SOURCE.name} does not compile: {done.stderr.strip()[-500:]}")
            self._library = ctypes.CDLL(str(path))
        self._library.machine_read.argtypes = [ctypes.c_int64, ctypes.c_int, ctypes.c_double]
        self._library.machine_multiply_add.argtypes = [ctypes.c_int, ctypes.c_double]
        for function in (self._library.machine_read, self._library.machine_multiply_add):
            function.restype = ctypes.c_double

    def read_bytes_per_s(self, num_bytes: int, seconds: float) -> float:
        """The best of some tries to read a buffer of this size over and over."""
        return max(
            float(self._library.machine_read(num_bytes, self._num_threads, seconds / NUM_TRIES))
            for _ in range(NUM_TRIES)
        )

    def flops_per_s(self, seconds: float) -> float:
        """The best of some tries to multiply and add in float32; both count."""
        return max(
            float(self._library.machine_multiply_add(self._num_threads, seconds / NUM_TRIES)) for _ in range(NUM_TRIES)
        )
