"""Pretraining on images of other than three channels, from TIFF files to features and kNN."""

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import foveal
from foveal.backbone.weights import read_card
from foveal.errors import BadImageError, FovealError, RecipeError, RunError
from foveal.images.imageset import ImageSet
from foveal.pretrain.data import augment, views
from foveal.pretrain.data.loader import MicroBatches, RawBatch, micro_batches, to_batch
from foveal.pretrain.data.views import ViewSettings, make_views, plan_views
from foveal.pretrain.loop import pretrain
from foveal.pretrain.recipe import load_recipe
from foveal.pretrain.run import read_metrics

tifffile = pytest.importorskip("tifffile", reason="the extra tiff is not installed")

SETTINGS = ViewSettings(global_size=19, local_size=11, num_local=3)
# The views of a fixed picture, as they were before other channels were allowed. Their bytes depend on the vector
# instructions that OpenCV and PyTorch choose, so they are only asked for where they were made.
RGB_VIEWS = "9894f6224317b3707de4d31d9e95d79db868035208ad9f7c13d8763256892ca9"
MADE_WITH = ("2.13.0", "5.0.0", "AVX2")


def wide(channels: int, dtype: str = "u2", height: int = 33, width: int = 47) -> np.ndarray:
    """Smooth values with a gradient of its own in each channel."""
    top = np.iinfo(dtype).max
    ramp = np.linspace(0.1, 0.9, width)[None, :, None] * np.linspace(0.5, 1, channels)
    noise = np.random.default_rng(channels).normal(0, 0.02, (height, width, channels))
    return np.rint(np.clip(ramp + noise, 0, 1) * top).astype(dtype)


def make(image: np.ndarray, index: int = 0, **options: Any) -> views.Views:
    settings = SETTINGS.model_copy(update=options)
    return make_views(image, settings=settings, seed=1, epoch=0, index=index)


# ---- views ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    (torch.__version__.split("+")[0], cv2.__version__, torch.backends.cpu.get_cpu_capability()) != MADE_WITH,
    reason=f"the hash was made with torch, OpenCV and instructions {MADE_WITH}",
)
def test_rgb_views_are_the_bytes_they_were() -> None:
    digest = hashlib.sha256()
    picture = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(picture).resize((400, 300), Image.Resampling.BICUBIC))
    for index in range(12):
        result = make_views(picture, settings=ViewSettings(), seed=3, epoch=1, index=index)
        digest.update(result.global_crops.tobytes() + result.local_crops.tobytes())
    assert digest.hexdigest() == RGB_VIEWS


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("channels", [1, 2, 4, 9])
def test_views_keep_channels_and_integers_and_are_pure(channels: int, dtype: str) -> None:
    image = wide(channels, dtype)
    for index in range(8):
        result = make(image, index)
        assert result.global_crops.shape == (2, 19, 19, channels)
        assert result.local_crops.shape == (3, 11, 11, channels)
        assert result.global_crops.dtype == result.local_crops.dtype == np.dtype(dtype)
        again = make(image[:, ::-1].copy()[:, ::-1], index)
        assert all(np.array_equal(a, b) for a, b in zip(result, again, strict=True))


def test_without_photometric_operations_a_channel_is_cropped_as_rgb_is() -> None:
    """Up to the two roundings of the 8-bit resize."""
    off = dict.fromkeys(("jitter_probability", "grayscale_probability", "solarize_probability"), 0.0)
    off["blur_sigma"] = (1e-3, 1e-3)
    image = wide(3, "u1")
    four = make(np.concatenate([image, image[:, :, :1]], axis=2), 5, **off)
    rgb = make(image, 5, **off)
    for a, b in zip(four[:2], rgb[:2], strict=True):  # no larger crops were asked for
        assert np.abs(a[..., :3].astype(int) - b.astype(int)).max() <= 2
        assert np.array_equal(a[..., 3], a[..., 0])


def test_plans_share_geometry_with_rgb_and_leave_colour_out() -> None:
    plain, banded = (
        plan_views(33, 47, channels=c, settings=SETTINGS, seed=1, epoch=0, index=7) for c in (3, 5)
    )  # fmt: skip
    for rgb, plan in zip(plain, banded, strict=True):
        assert (plan.box, plan.hflip, plan.blur_sigma) == (rgb.box, rgb.hflip, rgb.blur_sigma)
        assert [k for k, _ in plan.jitter] == [k for k, _ in rgb.jitter if k < 2]
        assert not plan.grayscale
        assert not plan.solarize
        assert plan.channel_factors is not None
        assert [len(row) for row in plan.channel_factors] == [5, 5]
    factors = np.array(
        [
            p.channel_factors
            for i in range(300)
            for p in plan_views(9, 9, channels=4, settings=SETTINGS, seed=0, epoch=0, index=i)
        ]
    )
    assert 0.6 <= factors.min() < 0.605
    assert 1.395 < factors.max() < 1.4
    assert np.abs(np.corrcoef(factors.reshape(len(factors), -1).T) - np.eye(8)).max() < 0.12  # 4.6 standard errors


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_jitter_of_channels_follows_its_formula(dtype: str) -> None:
    image, factors = wide(4, dtype), (0.6, 0.93, 1.0, 1.4)
    top = np.iinfo(dtype).max
    for around_mean in (False, True):
        ours = augment.adjust_channels(image, factors, around_mean=around_mean).astype(float)
        for c, factor in enumerate(factors):
            centre = image[:, :, c].mean() if around_mean else 0.0
            expected = np.clip(factor * image[:, :, c].astype(float) + (1 - factor) * centre, 0, top)
            assert np.abs(ours[:, :, c] - expected).max() <= 0.51  # rounding, and float32 on 16-bit values


@pytest.mark.parametrize("channels", [1, 4, 9])
def test_blur_and_flip_take_any_channels_of_sixteen_bits(channels: int) -> None:
    image = wide(channels)
    blurred = augment.gaussian_blur(image, sigma=1.3, kernel_size=9)
    assert blurred.dtype == np.uint16
    for c in range(channels):
        alone = augment.gaussian_blur(np.repeat(image[:, :, c : c + 1], 3, axis=2), sigma=1.3, kernel_size=9)
        assert np.array_equal(blurred[:, :, c], alone[:, :, 0])
    assert np.array_equal(augment.hflip(image), image[:, ::-1])


# ---- batches --------------------------------------------------------------------------------------------------------


def folder_of(root: Path, *, channels: int, classes: int = 2, per_class: int = 6, dtype: str = "u2") -> Path:
    """Class folders that differ in which channel is bright."""
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max
    for label in range(classes):
        (root / str(label)).mkdir(parents=True)
        for number in range(per_class):
            values = rng.uniform(0.05, 0.25, (29, 37, channels))
            values[..., label % channels] += 0.3 + 0.3 * label + rng.uniform(0, 0.1)
            pixels = np.rint(values.clip(0, 1) * top).astype(dtype)
            options = {"planarconfig": "contig"} if channels > 1 else {}
            tifffile.imwrite(root / str(label) / f"{number}.tif", pixels, photometric="minisblack", **options)
    return root


def recipe_of(tiny_yaml: Path, images: Path, out: Path, *overrides: str) -> Any:
    return load_recipe(str(tiny_yaml), [f"images={images}", f"out={out}", *overrides])


def test_eight_and_sixteen_bits_in_one_batch_share_one_scale(tiny_yaml: Path, tmp_path: Path) -> None:
    for name, dtype in (("a", "u1"), ("b", "u2")):
        tifffile.imwrite(
            tmp_path / f"{name}.tif", np.full((9, 9, 4), np.iinfo(dtype).max // 5 * 2, dtype), planarconfig="contig"
        )
    recipe = recipe_of(
        tiny_yaml, tmp_path, tmp_path / "run", "backbone.channels=4", "views.jitter_probability=0",
        "batch_size=2", "micro_batch_size=2",
        "normalise.mean=[0.1,0.2,0.3,0.4]", "normalise.std=[0.5,0.5,0.5,0.5]",
    )  # fmt: skip
    raw = MicroBatches(ImageSet.open(tmp_path), recipe)[0]
    assert raw.global_crops.dtype == torch.uint16
    batch = to_batch(raw, mean=recipe.channel_mean, std=recipe.channel_std, device=torch.device("cpu"))
    expected = (0.4 - torch.tensor([0.1, 0.2, 0.3, 0.4])) / 0.5
    for crops in (batch[0], batch[1]):
        assert torch.allclose(crops, expected[None, :, None, None].expand_as(crops), atol=1e-5)


def test_crops_of_rgb_are_normalised_as_before() -> None:
    crops = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    raw = RawBatch(crops, crops, torch.zeros(2, 1, dtype=torch.bool), [])
    found = to_batch(raw, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), device=torch.device("cpu"))[0]
    expected = (crops.permute(0, 3, 1, 2) / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.4, 0.5, 0.6]
    ).view(3, 1, 1)
    assert torch.allclose(found, expected, atol=1e-5)


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "dtype"), [(4, "u2"), (1, "u1")])
def test_a_run_from_tiff_files_to_features_and_knn(tiny_yaml: Path, tmp_path: Path, channels: int, dtype: str) -> None:
    images = folder_of(tmp_path / "set", channels=channels, dtype=dtype)
    options = (
        f"backbone.channels={channels}",
        f"knn.train={images}",
        f"knn.test={images}",
        "knn.every_steps=6",
        "knn.k=3",
    )
    torch.set_num_threads(1)
    whole = pretrain(recipe_of(tiny_yaml, images, tmp_path / "whole", *options))
    pieces = recipe_of(tiny_yaml, images, tmp_path / "pieces", *options)
    for steps in (2, 3, None):
        pretrain(pieces, stop_after=steps)
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "pieces")]
    assert weights[0] == weights[1]

    card = read_card(whole.run / "model")
    every = [ImageSet.open(images).decode(i, channels=channels) / np.iinfo(dtype).max for i in range(12)]
    assert np.allclose(card.mean, np.concatenate(every).mean((0, 1)), rtol=1e-9)
    assert np.allclose(card.std, np.concatenate(every).std((0, 1)), rtol=1e-9)
    assert yaml.safe_load((whole.run / "recipe.yaml").read_text())["normalise"]["mean"] == card.mean
    assert read_metrics(whole.run)[-1]["knn"] > 60  # the classes differ in plain brightness

    model = foveal.load(whole.run / "model")
    path = images / "0" / "0.tif"
    from_file, from_array = (model.extract(x).cls for x in (path, ImageSet.open(images).decode(0, channels=channels)))
    assert torch.equal(from_file, from_array)
    assert torch.isfinite(from_file).all()
    with pytest.raises(FovealError, match=rf"uint8 or uint16 arrays of shape \(H, W, {channels}\)"):
        model.extract(np.zeros((40, 40, 3), np.uint8))
    tifffile.imwrite(tmp_path / "six.tif", np.zeros((9, 9, 6), np.uint8), planarconfig="contig")
    with pytest.raises(BadImageError, match=f"this TIFF has 6 channels, asked for are {channels}") as caught:
        model.extract(tmp_path / "six.tif")
    assert caught.value.reason == "wrong_channels"


def test_a_worker_hands_over_sixteen_bits(tiny_yaml: Path, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "set", channels=2)
    recipe = recipe_of(tiny_yaml, images, tmp_path / "run", "backbone.channels=2", "num_workers=1")
    set_of = ImageSet.open(images)
    from_worker = next(iter(micro_batches(set_of, recipe, steps=range(1))))
    here = MicroBatches(set_of, recipe)[0]
    assert from_worker.global_crops.dtype == torch.uint16
    assert np.array_equal(from_worker.local_crops.numpy(), here.local_crops.numpy())


def test_statistics_are_kept_with_the_run_and_other_ones_are_another_run(tiny_yaml: Path, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "set", channels=2)
    recipe = recipe_of(tiny_yaml, images, tmp_path / "run", "backbone.channels=2")
    pretrain(recipe, stop_after=1)
    stored = (tmp_path / "run" / "recipe.yaml").read_text()
    pretrain(recipe, stop_after=1)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == stored
    other = recipe_of(
        tiny_yaml, images, tmp_path / "run", "backbone.channels=2", "normalise.mean=[0.1,0.2]", "normalise.std=[1,1]"
    )
    with pytest.raises(RunError, match=r"normalise\.mean was"):
        pretrain(other, stop_after=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["normalise.mean=[0.5,0.5,0.5]"], "belong together"),
        (["normalise.mean=[0.5]", "normalise.std=[0.5]"], "backbone.channels=3 needs 3 each"),
        (["normalise.mean=[0,0,0]", "normalise.std=[1,0,1]"], "every number must be above 0"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(
    tiny_yaml: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of(tiny_yaml, tmp_path, tmp_path / "run", *overrides)
