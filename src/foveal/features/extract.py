"""From pictures to frozen features: `foveal.load(folder).extract(images)`.

Shapes: B images, D width, R registers, C channels, H W pixels; grid_h x grid_w patches.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from foveal.backbone.weights import WEIGHTS, Card, load_model
from foveal.engine.auto import NUM_IMAGES, AutoEngine
from foveal.engine.base import Engine, Precision
from foveal.engine.choose import EngineName, open_engine
from foveal.errors import BadImageError, FovealError
from foveal.features.batches import Progress, prepared_batches
from foveal.images.imageset import ImageSet
from foveal.images.ledger import BadImageLedger
from foveal.images.preprocess import ImageLike, Mode, Preprocess

What = Literal["cls", "registers", "patches"]


@dataclass(frozen=True)
class Features:
    """Tokens after the final norm, float32 on the CPU.

    Attributes:
        cls: (B, D), one vector an image.
        registers: (B, R, D); R may be 0.
        patches: (B, grid_h, grid_w, D).
    """

    cls: Tensor
    registers: Tensor
    patches: Tensor


@dataclass(frozen=True)
class SetFeatures:
    """Features of the readable images of a set.

    Attributes:
        arrays: what was asked for, by name; row i belongs to image indices[i] of the set.
        indices: (n,) int64, ascending.
        bad: how many images were skipped, by reason.
    """

    arrays: dict[str, Tensor]
    indices: Tensor
    bad: dict[str, int]


class Model:
    """A backbone with the preprocessing of its card.

    Args:
        engine: runs the backbone.
        card: channel statistics and default sizes.
    """

    def __init__(self, engine: Engine, card: Card) -> None:
        self.engine = engine
        self.card = card

    def preprocessing(self, *, size: int | None = None, fit: Mode = "crop") -> Preprocess:
        """Return the transform that `extract` applies for these arguments."""
        card = self.card
        resize_size, crop_size = size, None
        if fit == "crop":
            crop_size = card.crop_size if size is None else size
            resize_size = card.resize_size if size is None else round(size * card.resize_size / card.crop_size)
        return Preprocess(
            mode=fit,
            resize_size=resize_size,
            crop_size=crop_size,
            patch_size=card.backbone.patch_size,
            mean=tuple(card.mean),
            std=tuple(card.std),
        )

    def extract(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        size: int | None = None,
        fit: Mode = "crop",
        batch_size: int = 32,
    ) -> Features:
        """Return the features of some pictures.

        Args:
            images: a path, a Pillow image or an (H, W, 3) uint8 array, or several of them mixed.
            size: pixels. With fit "crop" the side of the crop (None: the card's); with "resize" and "pad" the short
                side before fitting (None: each picture keeps its own size).
            fit: how a picture becomes a whole number of patches: "crop" (short side resized, centre cut out, as
                published), "resize" (each side to the nearest multiple) or "pad" (zeros around, after normalisation).
            batch_size: pictures at a time.

        Raises:
            FovealError: no pictures, something that is not a picture, or pictures of different sizes.
            BadImageError: a file that cannot be decoded.

        Example:
            >>> model = foveal.load("model")  # doctest: +SKIP
            >>> model.extract(["cat.jpg", "dog.png"]).cls.shape  # doctest: +SKIP
            torch.Size([2, 384])
        """
        pictures = list_of(images)
        preprocess = self.preprocessing(size=size, fit=fit)
        if self._is_undecided():
            self._settle_on([preprocess(picture) for picture in pictures[:NUM_IMAGES]])
        batches = [
            self._encode([preprocess(picture) for picture in pictures[start : start + batch_size]], get_args(What))
            for start in range(0, len(pictures), batch_size)
        ]
        return Features(**_concatenate(batches))

    def extract_set(
        self,
        images: ImageSet,
        *,
        what: Sequence[What] = ("cls",),
        size: int | None = None,
        fit: Mode = "crop",
        batch_size: int = 32,
        num_threads: int = 2,
        ledger: BadImageLedger | None = None,
        progress: Progress | None = None,
    ) -> SetFeatures:
        """Return features of a whole set in memory; see `stream_set` for the arguments.

        Raises:
            ImageSetError: not one image of the set can be read, or more are bad than the ledger allows.
        """
        bad: Counter[str] = Counter()
        stream = self.stream_set(
            images,
            what=what,
            size=size,
            fit=fit,
            batch_size=batch_size,
            num_threads=num_threads,
            ledger=ledger,
            progress=progress,
            bad=bad,
        )
        indices, batches = zip(*stream, strict=True)
        return SetFeatures(_concatenate(batches), torch.cat(indices), dict(bad))

    def stream_set(
        self,
        images: ImageSet,
        *,
        what: Sequence[What] = ("cls",),
        size: int | None = None,
        fit: Mode = "crop",
        batch_size: int = 32,
        num_threads: int = 2,
        ledger: BadImageLedger | None = None,
        progress: Progress | None = None,
        bad: Counter[str] | None = None,
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield features of a set batch by batch, decoding ahead in threads; memory does not grow with the set.

        Images that cannot be decoded are skipped and counted. Images of different sizes may be mixed as long as no
        patches are asked for.

        Args:
            images: the set, read in its order.
            what: which tokens, of "cls", "registers", "patches".
            size: see `extract`.
            fit: see `extract`.
            batch_size: images at a time.
            num_threads: decoding threads.
            ledger: records the bad images and stops at too many; None only counts and warns.
            progress: called with (images done, images in all) after each batch.
            bad: filled with the number of bad images by reason.

        Yields:
            Indices (b,) int64 into the set, and the tokens by name, float32 on the CPU.
        """
        if not what or set(what) - set(get_args(What)):
            raise FovealError(f"what={tuple(what)}; choose one or more of {', '.join(get_args(What))}")
        self.settle(images, size=size, fit=fit)
        for indices, arrays in prepared_batches(
            images,
            self.preprocessing(size=size, fit=fit),
            batch_size=batch_size,
            num_threads=num_threads,
            bad=bad,
            ledger=ledger,
            progress=progress,
        ):
            yield indices, self._encode(arrays, what)

    def settle(self, images: ImageSet, *, size: int | None = None, fit: Mode = "crop") -> None:
        """Let the engine choose on the first readable images of a set, where it has not chosen yet.

        Before it `engine.description` may not exist; after it, it says how the set will be encoded. Extraction calls it
        by itself, so that the choice does not depend on the batch size.

        Args:
            images: the set; its first 32 images are read, bad ones skipped.
            size: see `extract`.
            fit: see `extract`.
        """
        if not self._is_undecided():
            return
        preprocess = self.preprocessing(size=size, fit=fit)
        arrays = []
        for index in range(min(NUM_IMAGES, len(images))):
            with suppress(BadImageError):  # counted when the set is read
                arrays.append(preprocess(images.decode(index)))
        if arrays:
            self._settle_on(arrays)

    def _is_undecided(self) -> bool:
        return isinstance(self.engine, AutoEngine) and not self.engine.is_settled()

    def _settle_on(self, arrays: Sequence[np.ndarray]) -> None:
        """Let the engine choose on those arrays that have the most frequent shape."""
        shape, _ = Counter(array.shape for array in arrays).most_common(1)[0]
        self.engine.settle(torch.from_numpy(np.stack([array for array in arrays if array.shape == shape])))

    def _encode(self, arrays: Sequence[np.ndarray], what: Sequence[str]) -> dict[str, Tensor]:
        """Run (C, H, W) arrays, those of equal size together, and return their tokens in the order given."""
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, array in enumerate(arrays):
            by_shape[array.shape].append(number)
        patch = self.card.backbone.patch_size
        parts = []
        for (_, height, width), numbers in by_shape.items():
            batch = torch.from_numpy(np.stack([arrays[number] for number in numbers]))
            tokens = {
                name: tokens.cpu() for name, tokens in self.engine.encode(batch)._asdict().items() if name in what
            }
            if "patches" in tokens:
                tokens["patches"] = tokens["patches"].unflatten(1, (height // patch, width // patch))
            parts.append(tokens)
        place = torch.tensor([number for numbers in by_shape.values() for number in numbers]).argsort()
        return {name: tokens[place] for name, tokens in _concatenate(parts).items()}


def load(
    folder: str | Path,
    *,
    engine: EngineName = "auto",
    precision: Precision | None = None,
    fast: bool = False,
    device: str | None = None,
) -> Model:
    """Load a model folder for extraction.

    By default the engine is chosen on the first images that are encoded: the fastest for this computer whose features
    have a cosine of at least 0.9999 to those of fp32 PyTorch (0.999 with `fast`). The numbers are then those of that
    engine; `model.engine.description` names it, and stamps carry it. For the numbers of PyTorch itself, use
    engine="torch".

    Args:
        folder: holds model.safetensors and model.json.
        engine: "auto", "torch" or "openvino"; see `open_engine`.
        precision: "fp32", "bf16" or "fp16"; None leaves the choice to the engine, and is fp32 for "torch".
        fast: also int8, at the wider limit.
        device: a torch device; None takes the GPU where there is one, else the CPU.

    Raises:
        WeightsError: no model folder, or a damaged one.
        FovealError: an engine or a precision that is not known, not installed or not for this computer.
    """
    backbone, card = load_model(folder)
    chosen = open_engine(
        backbone,
        engine=engine,
        precision=precision,
        fast=fast,
        device=device,
        image_size=card.crop_size,
        weights=card.sha256.get(WEIGHTS),
    )
    return Model(chosen, card)


def list_of(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """Return one picture or several as a list; FovealError when it would be empty."""
    if isinstance(images, ImageLike):
        return [images]
    if not isinstance(images, Iterable) or not (pictures := list(images)):
        raise FovealError(f"{images!r} is no image; give a path, a Pillow image, an array, or a list of them")
    return pictures


def _concatenate(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    grids = sorted({tuple(batch["patches"].shape[1:3]) for batch in batches if "patches" in batch})
    if len(grids) > 1:
        listed = ", ".join(f"{h} x {w}" for h, w in grids[:4]) + (", ..." if len(grids) > 4 else "")
        raise FovealError(
            f"the images have different patch grids ({listed}), which cannot be stacked; use fit='crop', "
            "extract images of one size at a time, or use extract_set, which gives cls vectors of mixed sizes"
        )
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
