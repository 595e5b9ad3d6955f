"""Official linear classification heads: against transformers on random weights, and the files that are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import foveal
from foveal.errors import WeightsError
from foveal.features.extract import Model
from foveal.tasks.public_heads import open_head, open_public_head

SIDE, WIDTH, NUM_CLASSES = 70, 48, 7


def _file(path: Path, width: int, *, num_blocks: int, seed: int = 0) -> Path:
    """Write a head as the official ones are: weight and bias alone."""
    generator = torch.Generator().manual_seed(seed)
    inputs = (num_blocks + 1) * width
    weight = torch.randn(NUM_CLASSES, inputs, generator=generator) * inputs**-0.5
    torch.save({"weight": weight, "bias": torch.randn(NUM_CLASSES, generator=generator)}, path)
    return path


def test_head_of_one_block_is_that_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=14,
        num_labels=NUM_CLASSES,
    )
    torch.manual_seed(0)
    network = transformers.Dinov2ForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    network.dinov2.save_pretrained(tmp_path / "backbone")
    classifier = {name: value.detach().clone() for name, value in network.classifier.state_dict().items()}
    torch.save(classifier, tmp_path / "dinov2_vits14_linear_head.pth")
    model = foveal.load(tmp_path / "backbone", engine="torch")
    pictures = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = network(pictures).logits.softmax(dim=1)
    head = open_public_head(tmp_path / "dinov2_vits14_linear_head.pth", model)
    found = head.attach(model).of_arrays(list(pictures.numpy()))  # type: ignore[union-attr]
    assert wanted.std() > 0.02
    assert (found - wanted).abs().max() <= 1e-4


def test_head_of_four_blocks_reads_their_class_tokens_after_the_final_norm(model: Model, tmp_path: Path) -> None:
    width = model.card.backbone.width
    path = _file(tmp_path / "dinov2_vits14_reg4_linear4_head.pth", width, num_blocks=4)
    head = open_head(path, model)
    assert (head.card.layers, head.card.norm, head.card.task) == ([0, 1, 2, 3], True, "classification")
    picture = np.random.default_rng(0).integers(0, 256, (90, 81, 3), dtype=np.uint8)
    array = torch.from_numpy(model.preprocessing()(picture))[None]
    blocks = model.engine.intermediate(array, [0, 1, 2, 3], norm=True)
    inputs = torch.cat([*(one.cls for one in blocks), blocks[-1].patches.mean(dim=1)], dim=1)
    tensors = torch.load(path, weights_only=True)
    wanted = F.linear(inputs, tensors["weight"], tensors["bias"]).softmax(dim=1)
    np.testing.assert_allclose(model.with_head(head).probabilities([picture]), wanted, atol=1e-5)  # type: ignore[union-attr]


def test_names_are_given_or_numbers(model: Model, tmp_path: Path) -> None:
    path = _file(tmp_path / "head.pth", model.card.backbone.width, num_blocks=1)
    picture = np.zeros((70, 70, 3), np.uint8)
    label = model.with_head(open_public_head(path, model)).predict(picture)
    number = int(label.name.removeprefix("class "))  # type: ignore[union-attr]
    named = model.with_head(open_public_head(path, model, classes=list("abcdefg"))).predict(picture)
    assert named == ("abcdefg"[number], label.probability)  # type: ignore[union-attr]


def test_files_that_do_not_fit_are_refused(model: Model, tmp_path: Path) -> None:
    width = model.card.backbone.width
    path = _file(tmp_path / "two.pth", width, num_blocks=2)
    with pytest.raises(WeightsError, match=rf"reads {3 * width} numbers.*{2 * width} or, of four blocks, {5 * width}"):
        open_public_head(path, model)
    path = _file(tmp_path / "one.pth", width, num_blocks=1)
    with pytest.raises(WeightsError, match="tells 7 classes apart, and 2 names are given"):
        open_public_head(path, model, classes=["a", "b"])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match=r"one\.pth"):
        open_public_head(path, model)
    torch.save({"weight": torch.zeros(3), "bias": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"one\.pth: weight has the shape \(3,\), which is that of no head"):
        open_public_head(path, model)
    torch.save({"decode_head.conv_seg.weight": torch.zeros(1)}, tmp_path / "masks.pth")
    with pytest.raises(WeightsError, match="is no classification head; leave the names"):
        open_public_head(tmp_path / "masks.pth", model, classes=["a"])
