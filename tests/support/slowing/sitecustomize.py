"""Lets a test slow down the engine of a running service: the file that STEP_DELAY_FILE names holds the process's id and
the seconds that each of its steps then takes longer, "inf" for an engine that hangs.

Python imports this at its start where the folder is on PYTHONPATH.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

FILE = Path(os.environ["STEP_DELAY_FILE"])


def delay_s() -> float:
    pid, _, seconds = FILE.read_text().partition(" ") if FILE.exists() else ("", "", "")
    return float(seconds) if pid == str(os.getpid()) else 0.0


class EngineFinder(MetaPathFinder):
    """Finds the engine as everyone does, and changes its step once it has been loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "service.engine.core":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            step = module.EngineCore.step

            def step_late(*args: object) -> None:
                began_at = time.monotonic()
                while time.monotonic() - began_at < delay_s():
                    time.sleep(0.02)
                step(*args)

            module.EngineCore.step = step_late

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, EngineFinder())
