"""The operations on the device against those of the workers: the same choices, and the same pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveal.errors import RecipeError
from foveal.images.imageset import ImageSet
from foveal.pretrain.data import augment
from foveal.pretrain.data.loader import MicroBatches, RawBatch, finished
from foveal.pretrain.data.photometric import apply_plans, plan_row
from foveal.pretrain.data.views import ViewSettings, make_views
from foveal.pretrain.loop import pretrain
from foveal.pretrain.run import read_metrics

NOTHING: dict[str, Any] = {"jitter": [], "grayscale": False, "blur_sigma": None, "solarize": False}


def _colours(count: int, *, seed: int = 0, size: int = 24) -> np.ndarray:
    """Smooth colour pictures, as crops of photographs are."""
    coarse = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, 5, 5)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 255)
    return smooth.permute(0, 2, 3, 1).to(torch.uint8).numpy()


@pytest.mark.parametrize(
    ("plan", "expected", "most", "mean"),
    [
        ({"jitter": [(0, 1.3)]}, lambda crop: augment.adjust_brightness(crop, 1.3), 0, 0.0),
        ({"jitter": [(1, 0.7)]}, lambda crop: augment.adjust_contrast(crop, 0.7), 1, 0.05),
        ({"jitter": [(2, 1.4)]}, lambda crop: augment.adjust_saturation(crop, 1.4), 1, 0.1),
        ({"jitter": [(3, -0.3)]}, lambda crop: augment.adjust_hue(crop, -0.3), 8, 1.0),
        ({"grayscale": True}, augment.to_grayscale, 1, 0.05),
        ({"blur_sigma": 1.3}, lambda crop: augment.gaussian_blur(crop, sigma=1.3, kernel_size=9), 1, 0.01),
        ({"blur_sigma": 0.1}, lambda crop: crop, 0, 0.0),
        ({"solarize": True}, lambda crop: augment.solarize(crop, 128), 0, 0.0),
        (
            {"jitter": [(2, 0.8), (0, 1.2)], "grayscale": True, "solarize": True},
            lambda crop: augment.solarize(
                augment.to_grayscale(augment.adjust_brightness(augment.adjust_saturation(crop, 0.8), 1.2)), 128
            ),
            255,  # a grey level of difference decides whether 127 or 128 is turned
            1.0,
        ),
    ],
)
def test_an_operation_gives_the_workers_pixels(
    plan: dict[str, Any], expected: Callable[[np.ndarray], np.ndarray], most: int, mean: float
) -> None:
    crops = _colours(6)
    plans = torch.tensor([plan_row(**NOTHING), *[plan_row(**(NOTHING | plan))] * 5])
    found = apply_plans(torch.from_numpy(crops), plans, blur_kernel_size=9, solarize_threshold=128).numpy()
    assert np.array_equal(found[0], crops[0])
    wanted = np.stack([expected(crop) for crop in crops[1:]])
    difference = np.abs(found[1:].astype(int) - wanted)
    assert difference.max() <= most
    assert difference.mean() <= mean
    if "blur_sigma" not in plan or plan["blur_sigma"] > 1:
        assert np.abs(found[1:].astype(int) - crops[1:]).mean() > 2


def test_each_crop_is_blurred_by_its_own_deviation() -> None:
    crops = _colours(3, size=30)
    sigmas = (0.4, 2.0, 1.1)
    plans = torch.tensor([plan_row(**(NOTHING | {"blur_sigma": sigma})) for sigma in sigmas])
    found = apply_plans(torch.from_numpy(crops), plans, blur_kernel_size=5, solarize_threshold=128, enlarged=2).numpy()
    for crop, blurred, sigma in zip(crops, found, sigmas, strict=True):
        wanted = augment.gaussian_blur(crop, sigma=2 * sigma, kernel_size=9)
        assert np.abs(blurred.astype(int) - wanted).max() <= 1


def _batches(tiny: Any, *overrides: str) -> tuple[RawBatch, RawBatch]:
    of_workers, of_device = (
        MicroBatches(ImageSet.open(recipe.images), recipe)[3]
        for recipe in (tiny(*overrides), tiny(*overrides, "views.photometric=device"))
    )
    return of_workers, finished(of_device, device=torch.device("cpu"))


@pytest.mark.parametrize("gram", [(), ("gram={anchor: teacher, resolution_factor: 2, weight: 1.0}",)])
def test_a_micro_batch_shows_what_that_of_the_workers_shows(tiny: Any, gram: tuple[str, ...]) -> None:
    of_workers, of_device = _batches(tiny, "micro_batch_size=4", *gram)
    assert of_device.photometric is None
    for name in ("global_crops", "local_crops", *(("anchor_crops",) if gram else ())):
        there, here = getattr(of_workers, name).float(), getattr(of_device, name).float()
        assert (there - here).abs().mean() < 0.7, name
    assert torch.equal(of_workers.masks, of_device.masks)


def test_views_of_the_device_have_the_distribution_of_the_workers() -> None:
    """Means and spreads of colours over many views; their crops are the same, so differences are small."""
    image = _colours(1, seed=3, size=40)[0]
    statistics = []
    for where in ("workers", "device"):
        settings = ViewSettings(global_size=16, local_size=8, num_local=2, photometric=where)  # type: ignore[arg-type]
        crops = []
        for index in range(300):
            views = make_views(image, settings=settings, seed=1, epoch=0, index=index)
            found = views.global_crops
            if views.plans is not None:
                plans = torch.from_numpy(views.plans[:2])
                found = apply_plans(torch.from_numpy(found), plans, blur_kernel_size=9, solarize_threshold=128).numpy()
            crops.append(found.reshape(2, -1, 3).astype(float))
        pixels = np.stack(crops)  # (300, 2, S S, 3)
        means = pixels.mean(axis=2)
        statistics.append(
            np.concatenate([means.mean(0).ravel(), means.std(0).ravel(), pixels.std(axis=2).mean(0).ravel()])
        )
    # Statistics from 20 to 130 grey levels; a crop's own mean varies by some 30.
    assert np.abs(statistics[0] - statistics[1]).max() < 0.5


def test_a_run_with_photometrics_on_the_device_ends_near_that_of_the_workers(tiny: Any, tmp_path: Path) -> None:
    losses = []
    for where in ("workers", "device"):
        pretrain(tiny(f"views.photometric={where}", "health=null", out=where))
        losses.append([line["loss"] for line in read_metrics(tmp_path / where)])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


def test_other_channels_are_refused(tiny: Any) -> None:
    with pytest.raises(RecipeError, match=r"views.photometric=device .*RGB.*backbone.channels=4"):
        tiny("views.photometric=device", "backbone.channels=4", "normalise={mean: [0,0,0,0], std: [1,1,1,1]}")
