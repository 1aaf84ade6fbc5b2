"""deploy/check_image.sh: the image built and tried, where that can be done and is asked for."""

import os
import subprocess

import pytest

from tests.support.tools import ROOT

SCRIPT = ROOT / "deploy" / "check_image.sh"
UNABLE = 77


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    not os.environ.get("CHECK_IMAGE"),
    reason="building an image takes ten minutes and registries: CHECK_IMAGE=1 asks for it",
)
def test_the_image_is_built_and_serves_as_a_worker_is_restricted() -> None:
    done = subprocess.run([SCRIPT], capture_output=True, text=True)
    if done.returncode == UNABLE:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_where_it_cannot_be_done_it_says_why_and_that_it_did_nothing(tmp_path: os.PathLike[str]) -> None:
    """With nothing but a shell's own programs on the path."""
    for name in ("bash", "env", "dirname"):
        os.symlink(f"/usr/bin/{name}", os.path.join(tmp_path, name))
    done = subprocess.run(["/bin/bash", SCRIPT], capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert done.returncode == UNABLE
    assert done.stderr == "check_image: skipped, since buildah is not installed\n"
