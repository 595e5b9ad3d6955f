"""Chromium, pictures that come with dependencies, a tiny model, and pages that may not complain."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from page_window import Window, opened
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright

from foveal.backbone.card import Card
from foveal.backbone.licence import OWN
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import save_model
from foveal.images.photographs import packaged_photographs

NAMES = ("chromium", "chromium-browser", "google-chrome")
SUBJECTS = ("chelsea", "coffee", "flower", "china")  # of the pictures
EACH = 9
expect.set_options(timeout=15_000)  # milliseconds; machines of tests are busy


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = f"there is no browser ({', '.join(NAMES)}); apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def windows(chromium: Browser) -> Iterator[Callable[..., Window]]:
    """Opens windows of a page, as one person's browser does; those of one size share cookies and storage."""
    made: list[Window] = []
    contexts: dict[tuple[int, int, bool], BrowserContext] = {}

    def open_window(address: str, *, width: int = 1280, height: int = 800, touch: bool = False) -> Window:
        size = (width, height, touch)
        if size not in contexts:
            viewport = ViewportSize(width=width, height=height)
            contexts[size] = chromium.new_context(viewport=viewport, locale="en-GB", has_touch=touch)
            contexts[size].set_default_timeout(15_000)
        made.append(opened(contexts[size].new_page(), address))
        return made[-1]

    yield open_window
    complaints = [one for window in made for one in window.complaints]
    for context in contexts.values():
        context.close()
    assert not complaints, complaints


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SUBJECT-NUMBER.jpg: nine overlapping crops of each of four packaged photographs."""
    folder = tmp_path_factory.mktemp("pictures")
    found = packaged_photographs()
    for name in SUBJECTS:
        picture = Image.fromarray(found[name])
        picture = picture.resize((360, 360 * picture.height // picture.width))
        for number in range(EACH):
            left, top = 20 * (number % 3), 15 * (number // 3)
            picture.crop((left, top, left + 300, top + 195)).save(folder / f"{name}-{number}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with weights as drawn, or the one that pictures for the documentation are made with."""
    if given := os.environ.get("FOVEAL_PICTURES_MODEL"):
        return Path(given)
    config = backbone_config("vit_nano", depth=2, num_registers=2, patch_size=14, image_size=112, layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for number, parameter in enumerate(backbone.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    card = Card(name="tiny", backbone=config, crop_size=112, resize_size=128, licence=OWN)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, backbone, card)
    return folder


@pytest.fixture
def picture_of() -> Callable[[Page, str], None]:
    """Writes what a window shows into the folder FOVEAL_PICTURES; the documentation's pictures are made so."""

    def write(page: Page, name: str) -> None:
        folder = os.environ.get("FOVEAL_PICTURES")
        if folder is None:
            return
        path = Path(folder) / f"{name}.png"
        page.screenshot(path=path)
        Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)

    return write
