"""TopK language models: the model, its training, its checkpoints, and everything else that needs no server.

`topk_model.checkpoints.load_model` loads one. Importing this package registers the model with transformers'
AutoModelForCausalLM without importing transformers.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

#: The module of transformers that defines `AutoModelForCausalLM`, and ours that registers with it.
THEIRS, OURS = "transformers.models.auto.modeling_auto", "topk_model.modeling"


def register_when_imported() -> None:
    """Import the model as soon as transformers' class is imported, or now if it already is."""
    if THEIRS in sys.modules:
        import_module(OURS)
    else:
        sys.meta_path.insert(0, _Waiting())


class _Waiting(MetaPathFinder):
    """Finds nothing itself, but ensures that `OURS` is imported after `THEIRS`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != THEIRS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            import_module(OURS)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


register_when_imported()
