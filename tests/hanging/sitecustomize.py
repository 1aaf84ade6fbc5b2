"""Lets a test make the engine of a running service hang, in the process whose id the file that HANG_FILE names holds.

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


class EngineFinder(MetaPathFinder):
    """Finds the engine as everyone does, and changes its step once it has been loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "service.engine.loop":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module
        file = Path(os.environ["HANG_FILE"])

        def load_and_change(module: ModuleType) -> None:
            load(module)
            step = module.EngineCore.step

            def step_unless_hanging(*args: object) -> None:
                while file.exists() and file.read_text() == str(os.getpid()):
                    time.sleep(0.05)
                step(*args)

            module.EngineCore.step = step_unless_hanging

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, EngineFinder())
