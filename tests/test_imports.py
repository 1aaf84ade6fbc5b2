"""The laws of the source tree: imports go one way, and a file has one job."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 400
SOURCES = sorted(
    p for folder in ("topk_model", "service") for p in (ROOT / folder).rglob("*.py") if "pb" not in p.parts
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
WEB = ROOT / "service" / "web"
WEB_SOURCES = sorted(p for p in WEB.rglob("*") if p.suffix in (".js", ".css") and "vendor" not in p.parts)
ENGINE = [p for p in SOURCES if p.is_relative_to(ROOT / "service" / "engine")]
MODEL = [p for p in SOURCES if p.is_relative_to(ROOT / "topk_model")]

#: The engine knows no Ray, no HTTP and no text.
NOT_IN_ENGINE = {"ray", "fastapi", "starlette", "grpc", "httpx", "tokenizers", "transformers", "pydantic_settings"}
NOT_IN_MODEL = {"service", "ray", "fastapi", "starlette", "grpc", "httpx", "pydantic_settings", "prometheus_client"}


def imported(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports, wherever in it; relative ones made absolute."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def roots(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imported(path)}


@pytest.mark.parametrize("path", MODEL, ids=name)
def test_the_model_knows_no_server(path: Path) -> None:
    assert not roots(path) & NOT_IN_MODEL


@pytest.mark.parametrize("path", ENGINE, ids=name)
def test_the_engine_knows_the_model_alone(path: Path) -> None:
    assert not roots(path) & NOT_IN_ENGINE
    assert {m for m in imported(path) if m.startswith("service")} <= {
        m for m in imported(path) if "service.engine" in m
    }


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_source_imports_the_tests(path: Path) -> None:
    assert not roots(path) & {"tests", "loadtests"}


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_no_test_imports_a_test(path: Path) -> None:
    assert not [module for module in imported(path) if module.rpartition(".")[2].startswith("test_")]


@pytest.mark.parametrize("path", [*SOURCES, *WEB_SOURCES, *TESTS], ids=name)
def test_a_file_is_short_enough_to_have_one_job(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_module_says_its_job(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or (path.name == "__init__.py" and not tree.body)
