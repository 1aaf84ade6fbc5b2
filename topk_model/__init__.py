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

#: Our module that registers the model.
OURS = "topk_model.modeling"
#: The module with the class that it registers with, and the modules that it needs for that: each with a name that it
#: has only once it is complete. transformers imports the first while it defines a configuration such as Llama's.
THEIRS = ("transformers.models.auto.modeling_auto", "AutoModelForCausalLM")
NEEDED = (
    ("transformers.models.llama.configuration_llama", "LlamaConfig"),
    ("topk_model.configuration", "TopKLMConfig"),
)


def register_if_possible() -> None:
    """Import the model if transformers' class is there and nothing that the model needs is half imported."""
    module, name = THEIRS
    is_there = hasattr(sys.modules.get(module), name)
    if is_there and all(hasattr(sys.modules[module], name) for module, name in NEEDED if module in sys.modules):
        import_module(OURS)


class _Waiting(MetaPathFinder):
    """Finds nothing itself, but has `register_if_possible` called after a module is imported."""

    def __init__(self, fullname: str) -> None:
        self.fullname = fullname

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.fullname:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register_if_possible()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


register_if_possible()
for module in (THEIRS[0], NEEDED[0][0]):
    if module not in sys.modules:
        sys.meta_path.insert(0, _Waiting(module))
