"""The commands of the task pages work: every `sh` block of docs/*.md, in a folder with `model/` and `photos/`."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data

from foveal.backbone.licence import OWN
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, save_model

ROOT = Path(__file__).resolve().parents[2]
# A page starts a dozen processes, each of which imports torch.
pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]
PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket")


def shell_blocks(text: str) -> list[tuple[int, str]]:
    """Return (line number of the first command, commands) of each block fenced as ```sh."""
    found = re.finditer(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in found]


PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if shell_blocks(path.read_text()))


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH in which `foveal` and `python` are those that run this test, also where none is installed."""
    folder = tmp_path_factory.mktemp("bin")
    start = "import sys; from foveal.cli.main import main; sys.exit(main())"
    for name, line in {"python": "", "foveal": f"-c '{start}'"}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {line} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder but for a small untrained model with registers and four photographs."""
    config = backbone_config("vit_nano", num_registers=4, patch_size=14, image_size=98, layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    card = Card(name="nano", backbone=config, crop_size=98, resize_size=112, licence=OWN)
    save_model(tmp_path / "model", backbone, card)
    (tmp_path / "photos").mkdir()
    for name in PHOTOGRAPHS:
        picture = Image.fromarray(getattr(data, name)())
        picture.thumbnail((320, 320))
        picture.save(tmp_path / "photos" / f"{name}.jpg", quality=90)
    return tmp_path


def run_page(page: Path, place: Path, commands: Path) -> None:
    search = f"{commands}{os.pathsep}{os.environ['PATH']}"
    modules = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PATH": search, "PYTHONPATH": modules, "FOVEAL_HOME": str(place / ".foveal")}
    try:
        run_blocks(page, place, environment)
    finally:
        for file in place.glob("*.pid"):  # of servers that a block has started, where a later one has not ended them
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGTERM)


def run_blocks(page: Path, place: Path, environment: dict[str, str]) -> None:
    for line, block in shell_blocks(page.read_text()):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"{page.name}, line {line}:\n{block}\n{done.stdout}\n{done.stderr}"


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not on this machine")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_page_run(page: Path, place: Path, commands: Path) -> None:
    run_page(page, place, commands)


def test_a_command_that_fails_is_named_with_its_line(tmp_path: Path, place: Path, commands: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n```sh\nfoveal --version > version.txt\n```\ntext\n```sh\nls photos\nfoveal nothing | cat\n```\n"
    )
    with pytest.raises(AssertionError, match=r"page\.md, line 7:\n\s+ls photos"):
        run_page(page, place, commands)
    assert (place / "version.txt").read_text().startswith("foveal ")
