"""A server in this process, on a tiny network, for requests without sockets."""

import io
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import ClassVar

import httpx
import numpy as np
import torch
from PIL import Image

from foveal.backbone.card import Card
from foveal.backbone.licence import OWN
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import Tokens, VisionTransformer
from foveal.backbone.weights import save_model
from foveal.engine.torch_engine import TorchEngine
from foveal.features.extract import Model
from foveal.serve.app import create_app
from foveal.serve.loaded import Loaded
from foveal.serve.server import Server
from foveal.serve.service import Service
from foveal.serve.settings import ServeSettings
from foveal.tasks.head import Head, build_network, save_head
from foveal.tasks.kinds import head_card


def tiny_model(seed: int = 0, *, depth: int = 2) -> Model:
    config = backbone_config("vit_nano", depth=depth, num_registers=2, patch_size=7, image_size=28, layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + 1)))
    return Model(TorchEngine(backbone), Card(name="tiny", backbone=config, crop_size=28, resize_size=32, licence=OWN))


def write_model(folder: Path, model: Model) -> Path:
    save_model(folder, model.engine.backbone, model.card)
    return folder


def save_heads(folder: Path) -> tuple[Path, Path, Path]:
    """A head of classes, one of masks and one of depth on `tiny_model(0)`, with weights as drawn."""
    model = tiny_model(0)
    torch.manual_seed(0)
    classes = head_card(model, "classification", "linear", classes=["cat", "dog", "owl"])
    masks = head_card(model, "segmentation", "linear", classes=["sky", "road"])
    depth = head_card(model, "depth", "lin.1", min_depth=0.1, max_depth=10.0)
    for name, card in (("classes", classes), ("masks", masks), ("depth", depth)):
        save_head(folder / name, Head(build_network(card).eval(), card))
    return folder / "classes", folder / "masks", folder / "depth"


def pixels(seed: int, height: int = 33, width: int = 51) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


@asynccontextmanager
async def served(loaded: Loaded | None = None, **settings: object) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """A client of a server that runs while the block does."""
    service = Service(loaded or Loaded("tiny", tiny_model()), ServeSettings.model_validate(settings))
    app = create_app(service)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://here") as client,
    ):
        yield client, service


class StubEngine:
    """Takes a known time for each image, and answers their mean colours.

    Attributes:
        gate: where it is closed, batches wait until it is opened.
        repeats: how often a patch has the colours, for large answers.
        num_begun: images that came to the gate.
        num_images: that were run.
    """

    description: ClassVar = {"name": "stub"}
    identity = "stub"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()
        self.repeats = 1
        self.num_begun = 0
        self.num_images = 0

    def encode(self, batch: torch.Tensor) -> Tokens:
        self.num_begun += len(batch)
        assert self.gate.wait(20)
        time.sleep(self.seconds * len(batch))
        self.num_images += len(batch)
        cls = batch.mean(dim=(2, 3))
        return Tokens(cls, cls[:, None, :].expand(-1, 2, -1), cls[:, None, :].repeat(1, 16, self.repeats))


def stub(seconds: float) -> Loaded:
    """A model of known delay."""
    model = tiny_model()
    return Loaded("stub", Model(StubEngine(seconds), model.card))


@contextmanager
def running(loaded: Loaded, **settings: object) -> Iterator[tuple[str, Service]]:
    """The address of a server with real sockets, in a thread, while the block runs."""
    service = Service(loaded, ServeSettings.model_validate({"port": 0, **settings}))
    server = Server(service)
    thread = threading.Thread(target=server.run_to_end)
    thread.start()
    try:
        yield server.url, service
    finally:
        server.handle_exit()
        thread.join(timeout=20)
        assert not thread.is_alive()
