"""Programs that some tests run and that are no packages of the project: `make tools` installs them in .venv-tools."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / ".venv-tools" / "bin"


def tool(name: str, hint: str = "`make tools` does that") -> str:
    """Path of a program. Where there is none the test is skipped, or fails if `REQUIRE_TOOLS` is set, as CI does.

    Args:
        hint: how it is installed.
    """
    found = shutil.which(name, path=f"{FOLDER}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        message = f"{name} is not installed; {hint}"
        if os.environ.get("REQUIRE_TOOLS"):
            pytest.fail(message)
        pytest.skip(message)
    return found
