"""The stamp of a feature store: everything that decides its numbers. Stores of different stamps are never mixed."""

import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

import foveal
from foveal.backbone.card import Card
from foveal.errors import FovealError
from foveal.features import patch_pca
from foveal.features.extract import Model
from foveal.features.packing import Dtype, check_dtype
from foveal.features.preprocessing import preprocessing_of
from foveal.features.tokens import Token, check_tokens
from foveal.images.preprocess import Mode, Size

# What the user calls a key of the stamp.
_OPTIONS = {
    "preprocessing.mode": "fit",
    "preprocessing.crop_size": "size (of the crop)",
    "preprocessing.resize_size": "size (before the crop)",
}
_DECODERS = ("pillow", "simplejpeg", "tifffile", "pydicom", "numpy")


@dataclass(frozen=True)
class StoreSettings:
    """What is extracted and how it is stored.

    Attributes:
        tokens: of "cls", "registers", "patches" and "mean", the mean of the patch tokens.
        layers: blocks numbered from 0, each through the final norm; None is the last, under plain names.
        dtype: float16, int8 (one scale for each vector) or float32.
        pca: components to which patch tokens are reduced; None keeps them whole.
        size: pixels; see `Model.extract`.
        fit: see `Model.extract`.
        batch_size: images at a time. Part of the stamp, since the number of rows may change the last bit of a product.
        shard_size: rows of the image set in one shard.
    """

    tokens: tuple[Token, ...] = ("cls",)
    layers: tuple[int, ...] | None = None
    dtype: Dtype = "float16"
    pca: int | None = None
    size: Size | None = None
    fit: Mode = "crop"
    batch_size: int = 32
    shard_size: int = 1024

    def check(self, card: Card | None) -> None:
        """Refuse what a model does not have; FovealError says what it has.

        Args:
            card: of the model; None where it is not known yet, and only what no model has is refused.
        """
        check_tokens(self.tokens, self.layers, None if card is None else card.backbone)
        check_dtype(self.dtype)
        if self.batch_size < 1 or self.shard_size < 1:
            raise FovealError(f"batch_size={self.batch_size}, shard_size={self.shard_size}; both must be at least 1")
        if card is not None:
            preprocessing_of(card, size=self.size, fit=self.fit)
        if self.pca is None:
            return
        if "patches" not in self.tokens:
            raise FovealError(f"pca={self.pca} has no effect without patches; add them to the tokens or leave it out")
        if card is not None and not 1 <= self.pca < card.backbone.width:
            raise FovealError(f"pca={self.pca}; choose 1 to {card.backbone.width - 1} components for this model")


def make_stamp(model: Model, settings: StoreSettings) -> dict[str, Any]:
    """Return the stamp of features made with this model and these settings, here and now, as JSON has it."""
    pca = settings.pca and {
        "components": settings.pca,
        "images": patch_pca.NUM_IMAGES,
        "patches_per_image": patch_pca.PATCHES_PER_IMAGE,
    }
    stamp = {
        "model": {"name": model.card.name, "sha256": model.identity},
        "preprocessing": asdict(model.preprocessing(size=settings.size, fit=settings.fit)),
        "decoder": {name: _version(name) for name in _DECODERS},
        "engine": model.engine.description,
        "tokens": [token for token in get_args(Token) if token in settings.tokens],
        "layers": None if settings.layers is None else sorted(settings.layers),
        "dtype": settings.dtype,
        "pca": pca,
        "batch_size": settings.batch_size,
        "shard_size": settings.shard_size,
        "foveal": foveal.__version__,
    }
    plain: dict[str, Any] = json.loads(json.dumps(stamp))
    return plain


def check_same_stamp(stored: dict[str, Any], wanted: dict[str, Any], *, where: str) -> None:
    """Refuse to go on with a store of another stamp.

    Raises:
        FovealError: names every difference, and what to do.
    """
    differences = list(_differences(stored, wanted))
    if differences:
        raise FovealError(
            f"{where} holds features of another stamp: {'; '.join(differences)}. Repeat the command with the store's "
            "settings to continue it, or choose another --out"
        )


def _differences(stored: Any, wanted: Any, key: str = "") -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for name in sorted({*stored, *wanted}):
            if (key, name) == ("model", "name"):
                continue  # a file under another name is the same model; its hash tells
            yield from _differences(stored.get(name), wanted.get(name), f"{key}.{name}" if key else name)
    elif stored != wanted:
        yield f"{_OPTIONS.get(key, key)} is {stored} in the store and {wanted} now"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
