from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from foveal.errors import FovealError, ImageSetError
from foveal.features.extract import Model, load
from foveal.finetune.data import LabelledBatches
from foveal.finetune.loop import finetune, new_head
from foveal.finetune.network import Network
from foveal.finetune.settings import finetune_settings
from foveal.images.imageset import ImageSet
from foveal.pretrain.loop import Progress
from foveal.pretrain.run import read_metrics
from foveal.pretrain.start.weights import StartWeights
from foveal.tasks.classify import ClassPredictor
from foveal.tasks.head import Head, load_head
from foveal.tasks.kinds import head_card

Start = Callable[[], StartWeights]
SETTINGS = finetune_settings("classification", steps=6, batch_size=4, crop_size=28)


def head_of(model: Model, kind: str = "linear") -> Head:
    return new_head(head_card(model, "classification", kind, classes=["blue", "green", "red"]), seed=0)


@pytest.fixture
def images(colours: Path) -> ImageSet:
    return ImageSet.open(colours / "train")


@pytest.mark.parametrize("kind", ["linear", "mlp", "attentive"])
def test_network_says_what_its_model_and_head_predict(start: Start, model: Model, images: ImageSet, kind: str) -> None:
    head, weights = head_of(model, kind), start()
    network = Network(weights.backbone, head, SETTINGS).eval()
    (batch,) = LabelledBatches(images, SETTINGS, weights.card).of(range(1))
    found = network(batch.images).softmax(dim=1)
    wanted = ClassPredictor(model, head).of_arrays(list(batch.images.numpy()))
    torch.testing.assert_close(found.detach(), wanted, atol=1e-6, rtol=1e-5)


def test_loss_spreads_a_share_over_all_classes(start: Start, model: Model, images: ImageSet, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=1, drop_path=0.0, label_smoothing=0.3)
    data = LabelledBatches(images, settings, model.card)
    (batch,) = data.of(range(1))
    logs = Network(start().backbone, head_of(model), settings)(batch.images).log_softmax(dim=1)
    own = logs[torch.arange(4), batch.targets]
    wanted = -(0.7 * own + 0.3 * logs.mean(dim=1)).mean().item()
    finetune(start(), head_of(model), data, settings, out=tmp_path / "run")
    assert read_metrics(tmp_path / "run")[0]["loss"] == pytest.approx(wanted, rel=1e-5)


def test_labels_are_learned_and_a_killed_run_goes_on_to_the_bit(
    start: Start, model: Model, images: ImageSet, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.step == 3:
            raise Killed

    settings = replace(SETTINGS, steps=8, batch_size=9, learning_rate=1e-3, save_every_s=0)
    data = LabelledBatches(images, settings, model.card)
    finetune(start(), head_of(model), data, settings, out=tmp_path / "whole")
    with pytest.raises(Killed):
        finetune(start(), head_of(model), data, settings, out=tmp_path / "run", listener=kill)
    finetune(start(), head_of(model), data, settings, out=tmp_path / "run")
    heads = [load_head(tmp_path / name / "head") for name in ("whole", "run")]
    ours, theirs = (head.network.state_dict() for head in heads)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert heads[0].card.backbone == heads[1].card.backbone
    tuned = load(tmp_path / "run" / "model", engine="torch")
    assert (tuned.card.crop_size, tuned.card.resize_size) == (28, 32)  # as they were seen; 48 of 42 before
    found = ClassPredictor(tuned, heads[1])
    assert found.predict(Image.new("RGB", (40, 30), (230, 20, 30))).name == "red"


def test_images_that_cannot_be_learned_from_are_refused(images: ImageSet, model: Model, colours: Path) -> None:
    with pytest.raises(ImageSetError, match="images are of the class blue; give images of two or more"):
        LabelledBatches(images.subset([0, 1]), SETTINGS, model.card)
    with pytest.raises(FovealError, match=r"crop_size=\(28, 42\), batch_size=4; .*give one side"):
        LabelledBatches(images, replace(SETTINGS, crop_size=(28, 42)), model.card)
    with pytest.raises(FovealError, match="30 is not a multiple of the patch size 14; use 28 or 42"):
        LabelledBatches(images, replace(SETTINGS, crop_size=30), model.card)
    for path in (colours / "train").rglob("*.png"):
        path.write_bytes(b"torn")
    with pytest.raises(ImageSetError, match="0 images of step 0 can be read"):
        list(LabelledBatches(images, SETTINGS, model.card).of(range(1)))
