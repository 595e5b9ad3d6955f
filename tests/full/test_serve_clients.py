"""Public clients ask a real process of `foveal serve`: Triton's, and schemathesis everything that OpenAPI allows."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from child import output_of
from environments import ROOT, layered
from foveal_server import serving
from PIL import Image

import foveal
from foveal.backbone.card import Card
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import load_model, save_model
from foveal.engine.torch_engine import TorchEngine
from foveal.features.extract import Model
from foveal.features.extraction import open_extraction
from foveal.features.stamp import StoreSettings
from foveal.images.imageset import ImageSet
from foveal.tasks.head import Head, build_network, load_head, save_head
from foveal.tasks.kinds import head_card

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]
CLASSES = ["cat", "dog", "owl"]


@pytest.fixture(scope="module")
def clients() -> Path:
    constraints = [ROOT / "tests/full/clients_constraints.txt"]
    return layered("clients", "schemathesis", "tritonclient[http]", constraints=constraints, alone=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a head for classes, one for masks and a store; a picture, and prepared images."""
    folder = tmp_path_factory.mktemp("served")
    config = backbone_config("vit_nano", depth=2, num_registers=2, patch_size=7, image_size=28, layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    card = Card(name="tiny", backbone=config, crop_size=28, resize_size=32, licence="own")
    save_model(folder / "model", backbone, card)
    model = Model(TorchEngine(backbone), card)
    torch.manual_seed(0)
    for name, task, classes in (("animals", "classification", CLASSES), ("masks", "segmentation", ["sky", "road"])):
        head = head_card(model, task, "linear", classes=classes)  # type: ignore[arg-type]
        save_head(folder / name, Head(build_network(head).eval(), head))
    generator = np.random.default_rng(0)
    np.save(folder / "images.npy", generator.standard_normal((3, 3, 28, 35), dtype=np.float32))
    Image.fromarray(generator.integers(0, 256, (33, 51, 3), dtype=np.uint8)).save(folder / "picture.png")
    (folder / "list.txt").write_text("picture.png\n")
    open_extraction(folder / "store", model, ImageSet.open(folder / "list.txt"), StoreSettings()).run()
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """HOST:PORT of a server with all of these."""
    heads = (f"--head={folder / name}" for name in ("animals", "masks"))
    with serving(folder, *heads, f"--store={folder / 'store'}") as address:
        yield address


def test_tritons_client_gets_the_numbers_of_foveal(clients: Path, folder: Path, address: str) -> None:
    output_of([clients, ROOT / "tests/full/v2_client.py", address, folder], timeout_s=120)
    found = np.load(folder / "answers.npz")
    backbone, _ = load_model(folder / "model")
    images = np.load(folder / "images.npy")
    with torch.no_grad():
        tokens = backbone(torch.from_numpy(images))
    predictor = foveal.load(folder / "model", engine="torch").with_head(load_head(folder / "animals"))
    logits = predictor.logits(list(images)).numpy()  # type: ignore[union-attr]
    for is_binary in (True, False):
        for name in ("cls", "patches"):
            expected = getattr(tokens, name).numpy()
            np.testing.assert_allclose(found[f"{name} {is_binary}"], expected, atol=1e-5)
    np.testing.assert_array_equal(found["animals True"], found["animals False"])
    np.testing.assert_allclose(found["animals True"], logits, atol=1e-4)
    order = np.argsort(-found["animals True"], axis=1)[:, :2]
    numbers = [[int(text.split(":")[1]) for text in row] for row in found["best"].reshape(3, 2)]
    assert numbers == order.tolist()
    picture = foveal.load(folder / "model", engine="torch").extract(folder / "picture.png")
    np.testing.assert_allclose(found["picture"], picture.cls.numpy(), atol=1e-5)


def test_two_thousand_requests_that_openapi_allows_are_answered_deliberately(
    clients: Path, folder: Path, address: str
) -> None:
    (folder / "schemathesis.toml").write_text('[parameters]\n"path.model_name" = "tiny"\n"path.name" = "masks"\n')
    command = [
        clients.with_name("schemathesis"), "--config-file=schemathesis.toml", "run", f"http://{address}/openapi.json",
        "--phases=examples,fuzzing", "--max-examples=260", "--generation-deterministic", "--no-color",
        "--checks=deliberate,status_code_conformance", "--exclude-path=/metrics",
    ]  # fmt: skip
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_checks", "PYTHONPATH": str(ROOT / "tests/full")}
    printed = output_of(command, cwd=folder, env=environment, timeout_s=900)
    count = re.search(r"(\d+) generated, (\d+) passed", printed)
    assert count is not None, printed
    generated, passed = map(int, count.groups())
    assert generated == passed >= 2000, printed
