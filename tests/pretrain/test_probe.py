from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.errors import FovealError, RecipeError
from foveal.pretrain.learner import build_networks
from foveal.pretrain.loop import model_card, pretrain
from foveal.pretrain.probe import KNNProbe
from foveal.pretrain.recipe import KNN
from foveal.pretrain.run import read_metrics


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Two classes that colour tells apart."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 3)):
        for label, colour in (("red", (200, 20, 20)), ("blue", (20, 20, 200))):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(-15, 16, (32, 32, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{number}.png")
    return tmp_path


def test_accuracy_in_percent(tiny: Any, labelled: Path) -> None:
    recipe = tiny()
    _, teacher = build_networks(recipe)
    settings = KNN(train=str(labelled / "train"), test=str(labelled / "test"), every_steps=2, k=3)
    probe = KNNProbe(settings, device=torch.device("cpu"))
    assert probe(teacher.backbone, model_card(recipe, step=0, images_hash="x")) == {"knn": 100.0}


def test_probing_is_in_the_metrics_and_changes_nothing_else(tiny: Any, labelled: Path, tmp_path: Path) -> None:
    knn = [f"knn.train={labelled / 'train'}", f"knn.test={labelled / 'test'}", "knn.every_steps=4", "knn.k=3"]
    pretrain(tiny(*knn))
    pretrain(tiny(out="without"))
    metrics = read_metrics(tmp_path / "run")
    assert [line["step"] for line in metrics if "knn" in line] == [-1, 3, 5]
    assert metrics[0].keys() == {"step", "knn"}

    def losses(run: str) -> list[float]:
        return [line["loss"] for line in read_metrics(tmp_path / run) if "loss" in line]

    assert losses("run") == losses("without")


def test_starting_over_does_not_repeat_the_first_line(tiny: Any, labelled: Path, tmp_path: Path) -> None:
    knn = [f"knn.train={labelled / 'train'}", f"knn.test={labelled / 'test'}", "knn.every_steps=4", "knn.k=3"]

    def killed(_progress: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny(*knn), listener=killed)
    pretrain(tiny(*knn))
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [-1, *range(6)]


def test_bad_sets_are_refused_before_training(tiny: Any, photos: Path, labelled: Path) -> None:
    test = f"knn.test={labelled / 'test'}"
    with pytest.raises(RecipeError, match=r"knn.k=13 is above the 12 images of knn.train; use a smaller k"):
        pretrain(tiny(f"knn.train={labelled / 'train'}", test, "knn.every_steps=4", "knn.k=13"))
    with pytest.raises(FovealError, match="label"):
        pretrain(tiny(f"knn.train={photos}", test, "knn.every_steps=4", "knn.k=3", out="other"))
