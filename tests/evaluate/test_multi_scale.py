"""Masks over several scales against the formula written out on whole maps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from foveal.evaluate import multi_scale
from foveal.evaluate.multi_scale import predict_at_scales
from foveal.features.extract import Model
from foveal.images.preprocess import normalise
from foveal.tasks.head import Head, build_network
from foveal.tasks.kinds import head_card
from foveal.tasks.predict import Predictor

SIZE, SCALES, CROP, STRIDE = 35, (1.0, 1.4), 28, 21


@pytest.fixture(scope="module")
def predictor(model: Model) -> Predictor:
    card = head_card(model, "segmentation", "linear", classes=["a", "b", "c"])
    torch.manual_seed(0)
    network = build_network(card).eval()
    with torch.no_grad():
        network.conv_seg.weight.mul_(50)  # type: ignore[union-attr,operator]
    return model.with_head(Head(network, card))


def mean_probabilities(predictor: Predictor, pixels: np.ndarray) -> torch.Tensor:
    """Return (K, H, W): windows of whole pictures, then softmax, then the mean over scales and mirror images."""
    card, shape = predictor.model.card, pixels.shape[:2]
    found = []
    for short in (35, 49):
        size = (short, short * shape[1] // shape[0])
        seen = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))
        for mirrored in (False, True):
            picture = normalise(seen[:, ::-1] if mirrored else seen, mean=tuple(card.mean), std=tuple(card.std))
            logits, counts = torch.zeros(3, *size), torch.zeros(1, *size)
            tops, lefts = (sorted({*range(0, side - CROP, STRIDE), side - CROP}) for side in size)
            for top in tops:
                for left in lefts:
                    here = (slice(None), slice(top, top + CROP), slice(left, left + CROP))
                    logits[here] += predictor.scores(torch.from_numpy(picture[here].copy())[None])[0]
                    counts[here] += 1
            whole = F.interpolate((logits / counts)[None], size=shape, mode="bilinear", align_corners=False)[0]
            probabilities = whole.softmax(0)
            found.append(probabilities.flip(2) if mirrored else probabilities)
    return torch.stack(found).mean(0)


def test_probabilities_are_averaged_over_scales_and_mirror_images(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (26, 44, 3), dtype=np.uint8)
    wanted = mean_probabilities(predictor, pixels)
    best = wanted.sort(dim=0, descending=True).values
    sure = (best[0] - best[1] > 1e-4).numpy()
    assert sure.mean() > 0.95
    assert len(np.unique(wanted.argmax(0))) > 1
    for limit in (multi_scale.MAX_BYTES, 0):  # in memory, then in a temporary file
        monkeypatch.setattr(multi_scale, "MAX_BYTES", limit)
        found = predict_at_scales(predictor, pixels, size=SIZE, scales=SCALES, flip=True, crop_size=CROP, stride=STRIDE)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found[sure], wanted.argmax(0).numpy()[sure])
