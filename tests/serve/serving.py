"""A server in this process, on a tiny network, for requests without sockets."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

from foveal.backbone.card import Card
from foveal.backbone.licence import OWN
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import save_model
from foveal.engine.torch_engine import TorchEngine
from foveal.features.extract import Model
from foveal.serve.app import create_app
from foveal.serve.loaded import Loaded
from foveal.serve.service import Service
from foveal.serve.settings import ServeSettings


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
