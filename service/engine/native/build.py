"""Finds or compiles the step's library. Knows compilers and folders, but not what the library does.

A library is stored under a digest of sources, flags and compiler, so that a change to any of them makes another file. A
library inside a package is stored under a digest of sources and flags only, since its machine may have no compiler.

    python -m service.engine.native.build             compile it for this machine, if it is not there yet
    python -m service.engine.native.build --package   put it into the package, for all machines of this architecture
"""

import argparse
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
#: Folder of the libraries, if set; otherwise `topk-serve` in `XDG_CACHE_HOME` or `~/.cache`.
CACHE_VARIABLE = "TOPK_NATIVE_CACHE"
COMPILERS = ("c++", "g++", "clang++")
COMPILE_TIMEOUT_S = 300
SEAL_BYTES = hashlib.sha256().digest_size
#: No rounding may depend on what the compiler chooses to fuse or reorder.
FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden",
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
AVX2 = ("-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt")
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "avx512": (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
    "avx2": AVX2,
    "native": (),  # the compiler's default for the machine: NEON on aarch64
    # For tests: the plain loops, on a machine with vector instructions.
    "portable": (*(AVX2 if platform.machine() == "x86_64" else ()), "-DTOPK_PORTABLE"),
}
#: The instruction sets in a package, by architecture.
PACKAGED: dict[str, tuple[str, ...]] = {"x86_64": ("avx2", "avx512"), "aarch64": ("native",), "arm64": ("native",)}
#: The features that /proc/cpuinfo must list for an instruction set.
CPU_FLAGS = {"avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"}, "avx2": {"avx2", "fma", "bmi2"}}


class BuildError(RuntimeError):
    """There is no library, and none could be compiled."""


def best_isa() -> str:
    """The instruction set for this machine.

    Raises:
        BuildError: the processor has no fused multiply-add that the step can use.
    """
    machine = platform.machine()
    if machine in ("aarch64", "arm64"):
        return "native"
    if machine != "x86_64":
        raise BuildError(f"the compiled step supports x86-64 and aarch64, but this machine is {machine}")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError as error:
        raise BuildError(f"the processor's features cannot be read: {error}") from error
    flags = set(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))
    for isa in ("avx512", "avx2"):
        if flags >= CPU_FLAGS[isa]:
            return isa
    raise BuildError("the processor has no AVX2")


def find_compiler() -> str:
    """The C++ compiler: `$CXX`, or the first one on the path.

    Raises:
        BuildError: there is none.
    """
    named = os.environ.get("CXX")
    for name in (named,) if named else COMPILERS:
        if path := shutil.which(name):
            return path
    if named:
        raise BuildError(f"no C++ compiler: $CXX is {named}, which is not on the path")
    raise BuildError(f"no C++ compiler: $CXX is not set, and none of {', '.join(COMPILERS)} is on the path")


def library(isa: str | None = None, extra_flags: Iterable[str] = ()) -> Path:
    """The library for an instruction set (default: the best of this machine), compiled if it is not there yet.

    Raises:
        BuildError: there is none, and it cannot be compiled.
    """
    isa = isa or best_isa()
    flags = (*FLAGS, *ISA_FLAGS[isa], *extra_flags)
    packaged = packaged_path(SOURCES, isa, flags)
    if _is_whole(packaged):
        return packaged
    compiler = find_compiler()
    name = f"step-{isa}-{_digest(flags, compiler)}.so"
    for folder in _cache_folders():
        target = folder / name
        if _is_whole(target):
            return target
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _compile(compiler, flags, target)
        except OSError as error:
            logger.debug("%s cannot hold the compiled step: %s", folder, error)
            continue
        return target
    raise BuildError("no folder to write the compiled step to")


def package(folder: Path = SOURCES) -> list[Path]:
    """Put this architecture's libraries into a package's folder, and remove those of other sources.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    targets = {}
    for isa in PACKAGED.get(platform.machine(), ()):
        flags = (*FLAGS, *ISA_FLAGS[isa])
        targets[packaged_path(folder, isa, flags)] = flags
    for target, flags in targets.items():
        if not _is_whole(target):
            _compile(find_compiler(), flags, target)
    for other in set(folder.glob("step-*.so")) - targets.keys():
        other.unlink()
    return list(targets)


def packaged_path(folder: Path, isa: str, flags: tuple[str, ...]) -> Path:
    """Where a package's folder has the library for an instruction set, if it has one."""
    return folder / f"step-{isa}-{_digest(flags)}.so"


def _cache_folders() -> list[Path]:
    if named := os.environ.get(CACHE_VARIABLE):
        return [Path(named)]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "topk-serve"
    # Owned and writable by this user only: a library that others could replace would run as this user.
    private = Path(tempfile.gettempdir()) / f"topk-serve-{os.getuid()}"
    return [cache, *([private] if _is_ours(private) else [])]


def _is_ours(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    return folder.is_dir() and not folder.is_symlink() and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _digest(flags: tuple[str, ...], compiler: str | None = None) -> str:
    """The digest of everything that the library is compiled from."""
    digest = hashlib.sha256(repr((compiler, flags)).encode())
    if compiler is not None:
        try:
            digest.update(subprocess.run([compiler, "--version"], capture_output=True, timeout=30, check=True).stdout)
        except (OSError, subprocess.SubprocessError) as error:
            raise BuildError(f"{compiler} does not run: {error}") from error
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _is_whole(path: Path) -> bool:
    """Whether the file is a complete, undamaged library: loading a truncated one would kill the process."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return data[-SEAL_BYTES:] == _seal(data[:-SEAL_BYTES])


def _seal(data: bytes) -> bytes:
    """The digest appended to a library's file; loaders do not read that far."""
    return hashlib.sha256(data).digest()


def _compile(compiler: str, flags: tuple[str, ...], target: Path) -> None:
    """Compile into a temporary file next to the target and rename it: others see a complete library or none."""
    logger.info("compiling the CPU step, which takes some seconds, once")
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=".so")
    os.close(handle)
    made = Path(name)
    try:
        # One unit of all files: separate ones would read the same headers again and take three times as long.
        unit = "".join(f'#include "{path.name}"\n' for path in sorted(SOURCES.glob("*.cpp")))
        command = [compiler, *flags, "-I", str(SOURCES), "-x", "c++", "-", "-o", str(made)]
        try:
            done = subprocess.run(command, input=unit, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{compiler} took more than {COMPILE_TIMEOUT_S} s") from error
        if done.returncode:
            raise BuildError(f"{compiler} failed: {done.stderr.strip()[-2000:]}")
        data = made.read_bytes()
        made.write_bytes(data + _seal(data))
        made.chmod(0o755)
        made.replace(target)
    finally:
        made.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m service.engine.native.build", description="Compile the CPU step.")
    parser.add_argument(
        "--package",
        action="store_true",
        help="into the package itself, once for each instruction set of this architecture (default: for this machine, "
        "into the user's cache)",
    )
    arguments = parser.parse_args()
    try:
        paths = package() if arguments.package else [library()]
    except (BuildError, OSError) as error:
        sys.exit(f"the CPU step cannot be compiled: {error}")
    for path in paths:
        print(path)


if __name__ == "__main__":
    main()
