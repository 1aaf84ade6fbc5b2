"""An older commit of this repository beside the present one: a work tree of its own, and a Python that reads it."""

import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.compare.sides import ROOT


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A commit that can run."""

    commit: str
    folder: Path
    python: Path


def git(*arguments: str) -> str:
    """Raises RuntimeError if git fails."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"git {arguments[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


@contextmanager
def checkout(commit: str) -> Iterator[Checkout]:
    """The files of a commit, and an environment with the packages of the present one but the commit's own code and
    commands; both are gone at the end.

    Raises:
        RuntimeError: there is no such commit here, or git has no room for it.
    """
    full = git("rev-parse", "--verify", f"{commit}^{{commit}}")
    with tempfile.TemporaryDirectory(prefix="compare-") as name:
        folder, environment = Path(name) / "code", Path(name) / "environment"
        git("worktree", "add", "--quiet", "--detach", str(folder), full)
        try:
            python = make_environment(environment, folder)
            yield Checkout(commit=full, folder=folder, python=python)
        finally:
            git("worktree", "remove", "--force", str(folder))


def make_environment(environment: Path, folder: Path) -> Path:
    """A virtual environment that finds the code in `folder` first; returns its Python."""
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    (site,) = environment.glob("lib/python*/site-packages")
    # A line of such a file is a folder; what an installed package of ours has in the second for itself is not read.
    (site / "compare.pth").write_text(f"{folder}\n{sysconfig.get_path('purelib')}\n")
    scripts = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["scripts"]
    for name, where in scripts.items():
        module, _, function = where.partition(":")
        script = environment / "bin" / name
        script.write_text(f"#!{python}\nfrom {module} import {function}\n{function}()\n")
        script.chmod(0o755)
    return python


def present() -> Checkout:
    """The files that run this."""
    return Checkout(commit=describe(), folder=ROOT, python=Path(sys.executable))


def describe() -> str:
    """The present commit, and whether files differ from it; "unknown" outside of a repository."""
    try:
        return git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    except (RuntimeError, FileNotFoundError):
        return "unknown"
