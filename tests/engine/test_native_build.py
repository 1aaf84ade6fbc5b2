"""Where the compiled step's library comes from: a package, the cache, or a compiler; and what if there is none."""

import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.engine.native import binding, build, choice
from service.engine.runner import Runner
from tests.support.tiny import make_request, run, tiny_core, tokens
from tests.support.tools import ROOT


@pytest.fixture
def compiler() -> str:
    try:
        build.best_isa()
        return build.find_compiler()
    except build.BuildError as error:
        pytest.skip(f"no compiled step: {error}")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our own copy of the sources, and a cache of our own; without optimisation, which takes most of the time."""
    copy = tmp_path / "sources"
    copy.mkdir()
    for path in [*build.SOURCES.glob("*.cpp"), *build.SOURCES.glob("*.h")]:
        shutil.copy(path, copy)
    monkeypatch.setattr(build, "SOURCES", copy)
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O0"))
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path / "cache"))
    return copy


@pytest.fixture
def found_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What has been found out of this machine is forgotten, and so is what the test finds."""
    choice.forget()
    yield
    choice.forget()


@pytest.mark.usefixtures("sources", "found_anew")
def test_without_a_compiler_one_line_is_logged_and_torch_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.INFO):
        cores = [tiny_core(), tiny_core()]
    assert all(type(core.runner) is Runner for core in cores)
    (line,) = [record.getMessage() for record in caplog.records if record.name == choice.logger.name]
    assert "running on torch" in line
    assert "no C++ compiler: $CXX is no-such-compiler" in line
    assert len(tokens(run(cores[0], make_request("r"))["r"])) > 0
    with pytest.raises(build.BuildError, match="is not available: no C"):
        tiny_core(cpu_step="compiled")


@pytest.mark.long
@pytest.mark.usefixtures("found_anew")
def test_a_compiler_that_fails_is_quoted(sources: Path, compiler: str) -> None:
    (sources / "step.cpp").write_text("this is no program")
    with pytest.raises(build.BuildError, match=r"(?s)failed: .*this is no program"):
        build.library()
    assert type(tiny_core().runner) is Runner
    assert not list(Path(os.environ[build.CACHE_VARIABLE]).iterdir())


@pytest.mark.long
def test_a_library_is_compiled_once(sources: Path, compiler: str) -> None:
    path = build.library()
    written_at = path.stat().st_mtime_ns
    assert build.library() == path
    assert path.stat().st_mtime_ns == written_at
    assert binding.load_library(path).topk_isa().decode() == build.best_isa()


@pytest.mark.long
def test_another_source_flag_or_compiler_is_another_library(
    sources: Path, compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [build.library()]
    paths.append(build.library(extra_flags=("-DNOTHING",)))
    header = sources / "simd.h"
    header.write_text(header.read_text() + "// changed\n")
    paths.append(build.library())
    other = tmp_path / "other-c++"
    other.write_text(f'#!/bin/sh\nexec {compiler} "$@"\n')
    other.chmod(0o755)
    monkeypatch.setenv("CXX", str(other))
    paths.append(build.library())
    assert len(set(paths)) == len(paths)
    assert all(path.is_file() for path in paths)


@pytest.mark.long
@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_a_damaged_library_is_compiled_again(sources: Path, compiler: str, damage: str) -> None:
    """And never loaded: the loader would end the process."""
    path = build.library()
    good = path.read_bytes()
    middle = len(good) // 2
    path.write_bytes(
        {"cut": good[:middle], "changed": good[:middle] + b"?" * 8 + good[middle + 8 :], "emptied": b""}[damage]
    )
    assert build.library() == path
    assert path.read_bytes() == good


@pytest.mark.long
def test_a_package_carries_a_library_for_each_instruction_set_and_needs_no_compiler(
    sources: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sources / "step-avx2-0123456789abcdef.so").write_bytes(b"of other sources")
    made = build.package(sources)
    assert sorted(made) == sorted(sources.glob("step-*.so"))
    assert len(made) == len(build.PACKAGED[os.uname().machine])
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.library() in made
    assert build.package(sources) == made
    # What no longer is of these sources is not used.
    (sources / "simd.h").write_text("")
    with pytest.raises(build.BuildError, match="no C"):
        build.library()


@pytest.mark.long
def test_the_command_prints_what_it_made_and_why_it_could_not(sources: Path, compiler: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.engine.native.build"]
    path = build.library()
    environment = os.environ | {"PYTHONPATH": str(ROOT), build.CACHE_VARIABLE: str(tmp_path / "another")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    made = Path(done.stdout.strip())
    assert (made.parent, made.name.rsplit("-", 1)[0]) == (tmp_path / "another", path.name.rsplit("-", 1)[0])
    failed = subprocess.run(
        [*command, "--package"], capture_output=True, text=True, env=environment | {"CXX": "no-such-compiler"}
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("the CPU step cannot be compiled: no C++ compiler")


@pytest.mark.long
@pytest.mark.parametrize("has_compiler", [True, False])
def test_a_wheel_is_of_its_machine_if_it_carries_the_step(compiler: str, tmp_path: Path, has_compiler: bool) -> None:
    """The package without its data, which would take as long to pack as all else."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "service" / "engine", tree / "service" / "engine", ignore=shutil.ignore_patterns("*.so"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "service/__init__.py"):
        shutil.copy(ROOT / name, tree / name)
    environment = os.environ | {"CXX": compiler if has_compiler else "no-such-compiler"}
    command = [sys.executable, "-c", "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"]
    (tree / "dist").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tree)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path / "installed")
    if not has_compiler:
        assert (libraries, wheel.stem.rpartition("py3")[2]) == ([], "-none-any")
        assert "will be compiled at its first use: no C++ compiler" in done.stdout + done.stderr
        return
    machine = os.uname().machine
    assert wheel.stem.endswith(f"-py3-none-linux_{machine}")
    assert len(libraries) == len(build.PACKAGED[machine])
    code = "from service.engine.native import build; print(build.library())"
    used = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=tmp_path / "installed",
        env=os.environ | {"CXX": "no-such-compiler", "PYTHONPATH": ""},
    )  # fmt: skip
    assert used.returncode == 0, used.stderr
    path = Path(used.stdout.strip())
    assert path.parent == tmp_path / "installed" / "service" / "engine" / "native"
    binding.load_library(path)
