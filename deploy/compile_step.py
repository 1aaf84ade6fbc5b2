"""Puts the compiled CPU step into the installed package: once for each instruction set that an image may meet.

For the image's build, in the folder of the sources. Where there is no such step, or none for this architecture, the
service runs on torch.
"""

import importlib.util
import platform
import shutil
from pathlib import Path

PACKAGE = "service.engine.native"
ISAS = {"x86_64": ("avx2", "avx512"), "aarch64": ("native",)}


def main() -> None:
    if importlib.util.find_spec(PACKAGE) is None:
        print(f"there is no {PACKAGE} to compile")
        return
    from service.engine.native import build

    for isa in ISAS.get(platform.machine(), ()):
        target = Path(build.SOURCES) / f"step-{isa}.so"
        shutil.copyfile(build.library(isa), target)
        print(f"compiled {target}, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
