"""A head on its backbone: pictures of any size in, masks or depth of the same size out.

Shapes: B images, C channels, K maps, H W pixels.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveal.errors import FovealError
from foveal.features.extract import Model
from foveal.images.preprocess import ImageLike, normalise, resize, short_side_shape, to_array
from foveal.tasks.dense import finite, levels_of, resized
from foveal.tasks.head import Head, check_backbone
from foveal.tasks.windows import CROP_SIZE, STRIDE, check_windows, resized_bands, slide
from foveal.tasks.written import kept_probabilities

MAX_WHOLE_PIXELS = 1_500_000  # beyond it depth is predicted in windows too: attention grows with the square


class Predictor:
    """A model with a head.

    Args:
        model: the backbone with its preprocessing.
        head: fitted on it.

    Raises:
        WeightsError: the head belongs to another backbone.

    Example:
        >>> model = foveal.load("model").with_head(load_head("head"))  # doctest: +SKIP
        >>> model.predict("street.jpg").shape  # doctest: +SKIP
        (360, 480)
    """

    def __init__(self, model: Model, head: Head) -> None:
        check_backbone(head.card, model)
        self.model, self.head = model, head

    @property
    def fitted_size(self) -> int | None:
        """The short side at which the head saw pictures while it was fitted, pixels; None is their own."""
        fit = self.head.card.lineage.get("fit")
        size = fit.get("size") if isinstance(fit, dict) else None
        return size if isinstance(size, int) else None

    def predict(
        self,
        image: ImageLike,
        *,
        size: int | None = None,
        flip: bool = False,
        crop_size: int | None = None,
        stride: int | None = None,
        probabilities: Path | None = None,
    ) -> np.ndarray:
        """Return the answer for every pixel of a picture: class ids (H, W) uint16, or depth (H, W) float32.

        Args:
            image: a path, a Pillow image or an array.
            size: short side at which the model sees it, pixels; None is the one that the head was fitted at, else the
                picture's own.
            flip: average with the mirrored picture.
            crop_size: side of sliding windows, pixels; None is 512 for masks, and the whole picture for depth unless it
                has more than 1.5 million pixels.
            stride: of the windows, pixels; None is two thirds of `crop_size`.
            probabilities: of masks: a file for the probability of every class, .npy (K, H, W) float16, written as the
                bands are computed.
        """
        masks = self.head.card.task == "segmentation"
        if probabilities is not None and not masks:
            raise FovealError("probabilities are of masks; leave them out for depth")
        pixels = to_array(image, channels=self.model.card.backbone.channels)
        bands = self.bands(pixels, size=size, flip=flip, crop_size=crop_size, stride=stride)
        if probabilities is not None:
            shares = bands if flip else (band.softmax(dim=0) for band in bands)
            bands = kept_probabilities(shares, probabilities, shape=(pixels.shape[0], pixels.shape[1]))
        return np.concatenate([self.answer(scores) for scores in bands])

    def bands(
        self, pixels: np.ndarray, *, size: int | None, flip: bool, crop_size: int | None, stride: int | None
    ) -> Iterator[Tensor]:
        """Yield maps (K, rows, W) of pixels (H, W, C) in bands from the top; see `predict`.

        With `flip`, those of masks are probabilities.
        """
        original = (pixels.shape[0], pixels.shape[1])
        size = self.fitted_size if size is None else size
        if size is not None:
            height, width = short_side_shape(*original, size=size)
            pixels = resize(pixels, height=height, width=width)
        shape = (pixels.shape[0], pixels.shape[1])
        crop_size, stride = self._window(shape, crop_size, stride)

        def scores(rows: slice, columns: slice) -> Tensor:
            window = self._normalised(pixels[rows, columns])[None]
            return (self.flipped_scores(window) if flip else self.scores(window))[0]

        found = slide(scores, shape, crop_size=crop_size, stride=stride)
        yield from resized_bands(found, shape=shape, size=original)

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """Return what the head says of every pixel of normalised pictures (B, C, H, W): logits or depths (B, K, H, W).

        Where H or W is no multiple of the patch size, zeros are put around, and the part of the map that shows the
        picture is cut out; the reference stretches the whole map over the picture instead.
        """
        card = self.head.card
        patch_size = self.model.card.backbone.patch_size
        levels, (top, left, height, width) = levels_of(
            self.model.engine, images, layers=card.layers, norm=card.norm, patch_size=patch_size
        )
        found = finite(self.head.network.to(levels[0].patches.device)(levels), head=card.name)
        padded = (height + -height % patch_size, width + -width % patch_size)
        if card.task == "depth" and card.settings.get("max_depth") is not None:
            found = found.clamp(card.settings.get("min_depth", 0.0), card.settings["max_depth"])
        return resized(found, padded)[:, :, top : top + height, left : left + width].cpu()

    def flipped_scores(self, images: Tensor) -> Tensor:
        """Return the mean over the picture and its mirror image: of probabilities, or of depths."""
        both = [self.scores(images), self.scores(images.flip(3)).flip(3)]
        if self.head.card.task == "segmentation":
            both = [one.softmax(dim=1) for one in both]
        return (both[0] + both[1]) / 2

    def answer(self, scores: Tensor) -> np.ndarray:
        """Return maps (K, H, W) as class ids (H, W) uint16 or depth (H, W) float32."""
        if self.head.card.task == "segmentation":
            return scores.argmax(dim=0).numpy().astype(np.uint16)
        return scores[0].numpy()

    def _normalised(self, pixels: np.ndarray) -> Tensor:
        card = self.model.card
        return torch.from_numpy(normalise(pixels, mean=tuple(card.mean), std=tuple(card.std)))

    def _window(self, shape: tuple[int, int], crop_size: int | None, stride: int | None) -> tuple[int, int]:
        check_windows(crop_size, stride)
        if crop_size is not None:
            return crop_size, stride or max(crop_size * 2 // 3, 1)
        if self.head.card.task == "depth" and shape[0] * shape[1] <= MAX_WHOLE_PIXELS:
            return max(shape), max(shape)
        return CROP_SIZE, STRIDE
