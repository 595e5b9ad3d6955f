"""The accuracy gate on a network that is pretrained here, for some seconds, with pictures that it has not seen."""

import logging
from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import load_model
from foveal.engine.base import Engine
from foveal.engine.choose import open_engine
from foveal.engine.cpu import CPU
from foveal.engine.linears import linears_of
from foveal.engine.openvino_engine import OpenVINOEngine
from foveal.engine.quantise import quantise_plainly
from foveal.engine.torch_engine import TorchEngine
from foveal.features.extract import Model
from foveal.images.imageset import ImageSet
from foveal.images.photographs import packaged_photographs
from foveal.pretrain.loop import pretrain
from foveal.pretrain.recipe import load_recipe
from foveal.pretrain.run import read_metrics
from foveal.studies.crops import write_crops

pytest.importorskip("openvino", reason="OpenVINO is not installed (extra cpu)")
pytest.importorskip("skimage", reason="scikit-image is not installed (extra demo)")

SETTINGS = (
    "total_steps=60",
    "batch_size=16",
    "num_workers=0",
    "backbone.depth=2",
    "views.num_local=2",
    "heads.dino={num_prototypes: 128, bottleneck: 32, hidden: 64}",
    "optimizer.warmup_steps=10",
    "teacher.temperature_warmup_steps=20",
)
# An int8 that every processor can compute, and one so coarse that no network stands it; other precisions are left out.
INT8, COARSE = (CPU("pretended", int8=True, max_integer=m) for m in (63, 7))


class Trained(NamedTuple):
    """A trained network; normalised pictures to choose an engine on, and others."""

    backbone: VisionTransformer
    settling: Tensor
    others: Tensor


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    train, test = write_crops(packaged_photographs(), folder, train_each=24, test_each=12, size=32)
    pretrain(load_recipe("demo", [f"images={train}", f"out={folder / 'run'}", *SETTINGS]))
    losses = [step["dino_local"] for step in read_metrics(folder / "run")]
    assert losses[-1] < losses[0] - 0.2  # it learned
    backbone, card = load_model(folder / "run/model")
    images = ImageSet.open(test)
    prepare = Model(TorchEngine(backbone, device="cpu"), card).preprocessing()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    pictures = torch.from_numpy(np.stack([prepare(images.decode(i)) for i in order]))
    return Trained(backbone, pictures[:32], pictures[32:])


def _cosines(engine: Engine, backbone: VisionTransformer, pictures: Tensor) -> Tensor:
    exact = TorchEngine(backbone, device="cpu").encode(pictures).cls
    return F.cosine_similarity(engine.encode(pictures).cls.double(), exact.double(), dim=1)


def test_default_engine_of_this_processor_keeps_its_promise(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="foveal"):
        engine = open_engine(trained.backbone, engine="openvino", device="cpu").settle([trained.settling])
    assert f"engine: openvino {engine.description['precision']}, cosine min" in caplog.text
    assert _cosines(engine, trained.backbone, trained.settling[-8:]).min() >= 0.9999
    assert _cosines(engine, trained.backbone, trained.others).mean() >= 0.9999


@pytest.mark.parametrize("outliers", [False, True])
def test_fast_takes_int8_and_keeps_its_promise(
    trained: Trained, plant_outliers: Callable, outliers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = deepcopy(trained.backbone)
    if outliers:
        plant_outliers(backbone)
    with caplog.at_level(logging.INFO, logger="foveal"):
        engine = open_engine(backbone, engine="openvino", fast=True, device="cpu", cpu=INT8)
        engine = engine.settle([trained.settling])
    assert engine.description["precision"] == "int8"
    assert "engine: openvino int8, cosine min 0.999" in caplog.text
    others = _cosines(engine, trained.backbone, trained.others)
    assert others.min() >= 0.999
    assert others.max() < 0.9999999  # int8 it is


def test_plain_int8_fails_where_outliers_are_planted(trained: Trained, plant_outliers: Callable) -> None:
    backbone = deepcopy(trained.backbone)
    plant_outliers(backbone)
    plain = {}
    for number in range(len(backbone.blocks)):
        for layer in linears_of(backbone, number):
            seen: list[Tensor] = []
            hook = layer.module.register_forward_hook(lambda _, args, __, seen=seen: seen.append(args[0].detach()))
            TorchEngine(backbone, device="cpu").encode(trained.settling[:24])
            hook.remove()
            plain[layer.name] = quantise_plainly(layer.weight, layer.bias, seen[0], max_integer=INT8.max_integer)
    assert _cosines(OpenVINOEngine(backbone, quantised=plain), trained.backbone, trained.others).min() < 0.999


def test_int8_that_is_too_coarse_is_refused_and_the_next_path_said(
    trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="foveal"):
        engine = open_engine(trained.backbone, engine="openvino", fast=True, device="cpu", cpu=COARSE)
        engine = engine.settle([trained.settling])
    assert "openvino int8 refused: with half of the layers in float cosine min 0.9" in caplog.text
    assert "; engine: openvino fp32, cosine min 0.99999" in caplog.text
    assert _cosines(engine, trained.backbone, trained.others).min() >= 0.9999
