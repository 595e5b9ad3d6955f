"""Shared settings of the suite: one thread, so that equal means equal to the bit."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_server import FakeServer, running
from PIL import Image

torch.set_num_threads(1)
# A suite started in the background inherits an ignored SIGINT, and so would the processes that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

COLOURS = {"blue": (20, 30, 220), "green": (20, 210, 40), "red": (230, 20, 30)}
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def golden() -> Path:
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip(f"reference numbers are not on this machine ({folder})")
    return folder


@pytest.fixture(scope="session")
def real_images() -> Path:
    folder = Path(os.environ.get("FOVEAL_DATA", SHARED / "data"))
    if not folder.is_dir():
        pytest.skip(f"real test images are not on this machine ({folder}; set FOVEAL_DATA)")
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as state:
        yield state


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty FOVEAL_HOME; no other setting of downloads."""
    for name in ("FOVEAL_MIRROR", "FOVEAL_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FOVEAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """colours/{train,test}/CLASS/number.png: 7 and 3 pictures a class, which random weights tell apart."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 7), ("test", 3)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "colours" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = generator.integers(-20, 20, (30, 37, 3))
                picture = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(picture).save(folder / f"{i}.png")
    return tmp_path / "colours"
