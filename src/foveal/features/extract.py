"""From pictures to frozen features: `foveal.load(folder).extract(images)`.

Shapes: B images, D width, R registers, C channels, H W pixels; grid_h x grid_w patches.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from foveal.backbone.card import Card
from foveal.backbone.source import open_backbone
from foveal.engine.auto import NUM_IMAGES
from foveal.engine.base import Engine, Precision
from foveal.engine.choose import EngineName, check_options, open_engine
from foveal.engine.foreign import (
    check_foreign_options,
    check_prefix,
    holds_foreign,
    is_foreign,
    load_foreign,
    load_foreign_folder,
    load_open_clip,
)
from foveal.engine.open_clip_tower import OpenClip
from foveal.errors import BadImageError, FovealError, ImageSetError
from foveal.features.batches import Progress, prepared_batches
from foveal.features.preprocessing import preprocessing_of
from foveal.features.tokens import Token, check_tokens, concatenate, encode_arrays
from foveal.images.imageset import ImageSet
from foveal.images.ledger import BadImageLedger, listed
from foveal.images.preprocess import ImageLike, Mode, Preprocess, Size

_Attached = TypeVar("_Attached", covariant=True)


class Attachable(Protocol[_Attached]):
    """Something that is fitted on a backbone, such as `foveal.tasks.head.Head`."""

    def attach(self, model: "Model") -> _Attached:
        """Return it together with a model."""
        ...


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
        origin: the arguments of `load` with which it can be opened again, where it came from there.
    """

    def __init__(self, engine: Engine, card: Card, *, origin: dict[str, Any] | None = None) -> None:
        self.engine = engine
        self.card = card
        self.origin = origin

    @cached_property
    def identity(self) -> str:
        """The hash of the weights and the configuration, which tells one model from another whatever the files."""
        return self.engine.identity

    def with_head(self, head: Attachable[_Attached]) -> _Attached:
        """Return this model with a head on it, which predicts; see `foveal.load_head`.

        Raises:
            WeightsError: the head was fitted on another backbone.
        """
        return head.attach(self)

    def preprocessing(self, *, size: Size | None = None, fit: Mode = "crop") -> Preprocess:
        """Return the transform that `extract` applies for these arguments."""
        return preprocessing_of(self.card, size=size, fit=fit)

    def extract(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        size: Size | None = None,
        fit: Mode = "crop",
        batch_size: int = 32,
    ) -> Features:
        """Return the features of some pictures.

        Args:
            images: a path, a Pillow image or an array, or several of them mixed. Arrays are (H, W, 3) uint8 for RGB
                models, (H, W, C) uint8 or uint16 for models of C other channels.
            size: pixels. With fit "crop" the side of the crop (None: the card's); with "resize" and "pad" the short
                side before fitting (None: each picture keeps its own size). With fit "crop" and "resize" it may be
                (height, width): the size of the result.
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
        first: list[np.ndarray] = []  # filled where the engine looks at them before it is chosen

        def seen() -> Iterator[Tensor]:
            first.extend(preprocess(picture) for picture in pictures[:NUM_IMAGES])
            yield from batches_of(first)

        engine = self.engine.settle(seen())
        batches = [
            encode_arrays(
                engine,
                [
                    first[number] if number < len(first) else preprocess(pictures[number])
                    for number in range(start, min(start + batch_size, len(pictures)))
                ],
                tokens=("cls", "registers", "patches"),
                patch_size=preprocess.patch_size,
            )
            for start in range(0, len(pictures), batch_size)
        ]
        return Features(**concatenate(batches))

    def extract_set(
        self,
        images: ImageSet,
        *,
        what: Sequence[Token] = ("cls",),
        layers: Sequence[int] | None = None,
        size: Size | None = None,
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
            layers=layers,
            size=size,
            fit=fit,
            batch_size=batch_size,
            num_threads=num_threads,
            ledger=ledger,
            progress=progress,
            bad=bad,
        )
        indices, batches = zip(*stream, strict=True)
        return SetFeatures(concatenate(batches), torch.cat(indices), dict(bad))

    def stream_set(
        self,
        images: ImageSet,
        *,
        what: Sequence[Token] = ("cls",),
        layers: Sequence[int] | None = None,
        size: Size | None = None,
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
            what: which tokens, of "cls", "registers", "patches", and "mean", that of the patch tokens.
            layers: after which blocks, numbered from 0, through the final norm; the names are then "cls.layer5" and
                the like. None is the last block, and plain names.
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
        check_tokens(what, layers, self.card.backbone)
        preprocess = self.preprocessing(size=size, fit=fit)
        engine = self.engine.settle(_first_batches(images, preprocess), layers)
        patch_size = self.card.backbone.patch_size
        for indices, arrays in prepared_batches(
            images,
            preprocess,
            batch_size=batch_size,
            channels=self.card.backbone.channels,
            num_threads=num_threads,
            bad=bad,
            ledger=ledger,
            progress=progress,
        ):
            yield indices, encode_arrays(engine, arrays, tokens=what, layers=layers, patch_size=patch_size)

    def settle(
        self,
        images: ImageSet,
        *,
        layers: Sequence[int] | None = None,
        size: Size | None = None,
        fit: Mode = "crop",
        folder: Path | None = None,
    ) -> "Model":
        """Return this model with the one engine that will encode a set, chosen on its first readable images.

        `engine.description` then exists and says how the whole set is encoded, whatever sizes follow.

        Args:
            images: the set; its first 32 readable images are used where there is something to choose.
            layers: blocks that will be asked for; a choice holds for the blocks that it was made for.
            size: see `extract`.
            fit: see `extract`.
            folder: where a store keeps the choice and finds it again; None is for this process.
        """
        settled = copy(self)
        settled.identity = self.identity  # hashed once
        first = _first_batches(images, self.preprocessing(size=size, fit=fit))
        settled.engine = self.engine.settle(first, layers, folder=folder)
        return settled


def load(
    model: str | Path,
    *,
    engine: EngineName = "auto",
    precision: Precision | None = None,
    fast: bool = False,
    device: str | None = None,
    num_heads: int | None = None,
) -> Model:
    """Load a model for extraction.

    By default the engine is chosen on the first images that are encoded: the fastest for this computer whose features
    have a cosine of at least 0.9999 to those of fp32 PyTorch (0.999 with `fast`). The numbers are then those of that
    engine; `model.engine.description` names it, and stamps carry it. For the numbers of PyTorch itself, use
    engine="torch".

    Args:
        model: a model folder; a checkpoint; a name in `foveal models`, fetched once; or a backbone of another library,
            "timm:NAME", "hf:NAME" or "open_clip:NAME/PRETRAINED" (see `foveal.engine.foreign`), which runs as that
            library runs it, or "sscd:FILE", descriptors for copies.
        engine: "auto", "torch" or "openvino"; see `open_engine`.
        precision: "fp32", "bf16" or "fp16"; None leaves the choice to the engine, and is fp32 for "torch".
        fast: also int8, at the wider limit.
        device: a torch device; None takes the GPU where there is one, else the CPU.
        num_heads: attention heads, where neither the files nor the width tell.

    Raises:
        WeightsError: nothing is called that, or it is damaged.
        DownloadError: it cannot be fetched.
        FovealError: an engine or a precision that is not known, not installed or not for this computer.

    Example:
        >>> load("dinov2_vits14").card.licence.name  # doctest: +SKIP
        'Apache-2.0'
    """
    where = check_options(engine=engine, precision=precision, fast=fast, device=device)
    origin = {"model": os.path.abspath(model) if os.path.exists(model) else str(model), "num_heads": num_heads}
    if is_foreign(model) or holds_foreign(model):
        check_foreign_options(model, engine=engine, fast=fast, num_heads=num_heads)
        open_it = load_foreign if is_foreign(model) else load_foreign_folder
        found = open_it(str(model), precision=precision or "fp32", device=where)
        return Model(*found, origin=origin)
    check_prefix(model)
    backbone, card = open_backbone(model, num_heads=num_heads)
    chosen = open_engine(
        backbone,
        engine=engine,
        precision=precision,
        fast=fast,
        device=where,
        image_size=card.crop_size,
    )
    return Model(chosen, card, origin=origin)


def load_pair(
    model: str,
    *,
    engine: EngineName = "auto",
    precision: Precision | None = None,
    fast: bool = False,
    device: str | None = None,
    num_heads: int | None = None,
) -> tuple[Model, OpenClip]:
    """Load "open_clip:NAME/PRETRAINED" with its text tower; arguments and errors as of `load`."""
    where = check_options(engine=engine, precision=precision, fast=fast, device=device)
    check_foreign_options(model, engine=engine, fast=fast, num_heads=num_heads)
    encoder, card, pair = load_open_clip(model, precision=precision or "fp32", device=where)
    return Model(encoder, card, origin={"model": model, "num_heads": None}), pair


def batches_of(arrays: Sequence[np.ndarray]) -> Iterator[Tensor]:
    """Yield prepared images (C, H, W) as batches, those of equal size together."""
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)
    for array in arrays:
        by_shape[array.shape].append(array)
    for same in by_shape.values():
        yield torch.from_numpy(np.stack(same))


def _first_batches(images: ImageSet, preprocess: Preprocess) -> Iterator[Tensor]:
    """Yield the first readable images of a set in batches; nothing is read before the first is asked for."""
    arrays: list[np.ndarray] = []
    bad: Counter[str] = Counter()
    for index in range(len(images)):
        try:
            arrays.append(preprocess(images.decode(index, channels=preprocess.channels)))
        except BadImageError as error:  # counted for good when the set is read
            bad[error.reason] += 1
        if len(arrays) == NUM_IMAGES:
            break
    if not arrays:
        raise ImageSetError(f"none of the {len(images)} images can be read ({listed(bad)}); check the source")
    yield from batches_of(arrays)


def list_of(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """Return one picture or several as a list; FovealError when it would be empty."""
    if isinstance(images, ImageLike):
        return [images]
    if not isinstance(images, Iterable) or not (pictures := list(images)):
        raise FovealError(f"{images!r} is no image; give a path, a Pillow image, an array, or a list of them")
    return pictures
