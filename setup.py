"""What pyproject.toml cannot say: a wheel carries the compiled CPU step, if there is a C++ compiler where it is made.

Without one the wheel is the same for all machines, and the step is compiled at its first use.
"""

import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))  # where builders do not look by themselves

from service.engine.native import build

FOLDER = "service/engine/native"


class BuildWithStep(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        try:
            build.package(Path(self.build_lib, FOLDER))
        except build.BuildError as error:
            self.warn(f"the CPU step is not in the package and will be compiled at its first use: {error}")


class WheelOfItsMachine(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        python, abi, machine = super().get_tag()
        if any(Path(self.bdist_dir, FOLDER).glob("step-*.so")):
            machine = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        return python, abi, machine  # of every Python: the library knows none


setup(cmdclass={"build_py": BuildWithStep, "bdist_wheel": WheelOfItsMachine})
