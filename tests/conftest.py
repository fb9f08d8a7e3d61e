"""The world and the base models of `data/models/scenes`, opened once for all tests. Who trains opens another."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

# Threads that spin while they wait take busy cores from those they wait for: passive ones are several times faster
# there, and no slower elsewhere. Set before torch is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

MODELS = Path(__file__).parents[1] / "data" / "models" / "scenes"


@pytest.fixture(scope="session")
def world():
    from mmcollapse.worlds.scenes import Scenes

    return Scenes()


@pytest.fixture(scope="session")
def models_folder() -> Path:
    return MODELS


@pytest.fixture(scope="session")
def generator():
    from mmcollapse.models import load

    return load(MODELS / "generator")


@pytest.fixture(scope="session")
def captioner():
    from mmcollapse.models import load

    return load(MODELS / "captioner")


@pytest.fixture(scope="session")
def judge():
    from mmcollapse.models.judge import Judge

    return Judge(MODELS / "judge")


@pytest.fixture(scope="session")
def oracle():
    from mmcollapse.models.oracle import Oracle

    return Oracle(MODELS / "oracle")


@dataclass
class Smoke:
    """A finished `run` of all notebooks at `smoke`. folder: where it was started, with runs/, results/ and figures/."""

    folder: Path
    output: str
    code: int

    @property
    def options(self) -> list[str]:
        """What makes another command use the same folders, from anywhere."""
        names = ("runs", "results", "figures")
        return ["--profile", "smoke", *(word for n in names for word in (f"--{n}", str(self.folder / n)))]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Smoke:
    """Made once for all tests, by the command line, in a folder of its own and with relative folders."""
    folder = tmp_path_factory.mktemp("smoke")
    command = [sys.executable, "-m", "mmcollapse", "run", "--profile", "smoke", "--world", "scenes"]
    command += ["--runs", "runs", "--results", "results", "--figures", "figures"]
    run = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1800)
    return Smoke(folder, run.stdout, run.returncode)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    from browser import CHROMIUM, Browser

    if not CHROMIUM:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    own = Browser(tmp_path_factory.mktemp("browser"))
    yield own
    own.close()
