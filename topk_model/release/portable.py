"""Makes a shipped folder loadable by transformers alone: the model's code in one file, generated from this package.

With `trust_remote_code=True` transformers runs that file if this package is not installed. In addition, the tokenizer's
class gets the name that transformers 4 also knows, and weights in float16 load as float32, with whose rounding they
were trained: half precision would choose other neurons.
"""

import ast
import json
from pathlib import Path
from typing import Any

from topk_model import configuration, modeling
from topk_model.files import replace_text
from topk_model.model_folder import AUTO_MAP, CODE_FILE

HEADER = '''"""TopK language model, for transformers with trust_remote_code=True; made by `topk ship`, not to be edited.

Licensed under Apache-2.0.
"""
'''
#: Fields that transformers 5 writes about the machine that saved a tokenizer.
LOCAL_KEYS = ("backend", "is_local", "local_files_only", "name_or_path")


def standalone_code() -> str:
    """The configuration's and the model's source as one file that imports nothing of this package."""
    imports: dict[str, None] = {}  # in order, each once
    body: list[str] = []
    for module in (configuration, modeling):
        assert module.__file__ is not None
        source = Path(module.__file__).read_text(encoding="utf-8")
        tree = ast.parse(source)
        lines = source.splitlines()
        kept = []
        for node in tree.body[1:]:  # without the docstring
            text = ast.get_source_segment(source, node) or ""
            if isinstance(node, ast.Import | ast.ImportFrom):
                if not text.startswith("from topk_model"):
                    node.names = [name for name in node.names if not name.name.startswith("Auto")]
                    imports[ast.unparse(node)] = None
            elif "register" not in text.partition("\n")[0]:
                kept.append((node, text))
        for node, _ in kept:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))]) - 1
            while lines[first - 1].startswith("#"):
                first -= 1
            gap = "\n\n\n" if isinstance(node, ast.ClassDef | ast.FunctionDef) else "\n"
            body.append(gap + "\n".join(lines[first : node.end_lineno]))
    return f"{HEADER}\n{chr(10).join(imports)}\n{''.join(body)}\n"


def make_portable(folder: Path) -> None:
    """Add the code to a checkpoint's folder, and state in its configuration files how it is loaded."""
    (folder / CODE_FILE).write_text(standalone_code(), encoding="utf-8")
    update_json(folder / "config.json", {"auto_map": AUTO_MAP, "dtype": "float32"})
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.exists():
        update_json(tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast"}, without=LOCAL_KEYS)


def update_json(path: Path, fields: dict[str, Any], without: tuple[str, ...] = ()) -> None:
    found = json.loads(path.read_text(encoding="utf-8")) | fields
    kept = {name: found[name] for name in sorted(found) if name not in without}
    replace_text(path, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
