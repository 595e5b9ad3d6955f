"""The accuracy gate: how well a fast path agrees with the exact one on real images, and whether that is enough."""

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.backbone.vit import Tokens
from foveal.files import cache_folder, staging_of, write_atomically

logger = logging.getLogger(__name__)

# Least cosine to the fp32 reference, of the default and of the fast path.
LIMIT, FAST_LIMIT = 0.9999, 0.999
# A verdict on fewer images counts for the process that measured it, and is not written down.
NUM_IMAGES = 8


class Agreement(NamedTuple):
    """Cosines of a candidate's tokens to the reference's, over the images and layers compared.

    `cls_min` and `cls_mean` are over class tokens, `patch_min` and `patch_mean` over patch and register tokens.
    """

    cls_min: float
    cls_mean: float
    patch_min: float
    patch_mean: float
    num_images: int

    def passes(self, limit: float) -> bool:
        """Say whether it is good enough: every class token and the mean patch reach `limit`, every patch nearly.

        A single patch may be off ten times as far as the mean: among thousands there is always one with a short
        vector, which says little of the image.
        """
        return self.cls_min >= limit and self.patch_mean >= limit and self.patch_min >= 1 - 10 * (1 - limit)

    def __str__(self) -> str:
        return f"cosine min {shown(self.cls_min)}, of patches mean {shown(self.patch_mean)} on {self.num_images} images"


def shown(cosine: float) -> str:
    """Write a cosine with enough digits to tell it from 1, rounded down: a cosine below a limit never looks like it."""
    return f"{math.floor(cosine * 1e6) / 1e6:.6f}"


def agreement(found: Sequence[Tokens], exact: Sequence[Tokens]) -> Agreement:
    """Compare tokens with those of the reference; a token that is not finite has cosine 0."""
    cls = torch.cat([_cosine(a.cls, b.cls).flatten() for a, b in zip(found, exact, strict=True)])
    patches = torch.cat(
        [
            _cosine(a, b).flatten()
            for ours, theirs in zip(found, exact, strict=True)
            for a, b in ((ours.patches, theirs.patches), (ours.registers, theirs.registers))
        ]
    )
    return Agreement(
        float(cls.min()), float(cls.mean()), float(patches.min()), float(patches.mean()), len(exact[0].cls)
    )


def _cosine(found: Tensor, exact: Tensor) -> Tensor:
    return F.cosine_similarity(found.cpu().double(), exact.cpu().double(), dim=-1).nan_to_num(0.0)


def recall(key: Mapping[str, object]) -> Agreement | None:
    """Return what was measured before under these conditions, or None."""
    try:
        stored = json.loads(_file_of(key).read_text())
        return Agreement(**stored["agreement"]) if stored["key"] == _plain(key) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be used (%s); measuring again", _file_of(key), error)
        return None


def remember(key: Mapping[str, object], measured: Agreement) -> None:
    """Write down what was measured on enough images; a cache that cannot be written is a warning."""
    if measured.num_images < NUM_IMAGES:
        return
    path = _file_of(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"key": _plain(key), "agreement": measured._asdict()}, indent=2) + "\n"
        write_atomically(path, text, staging=staging_of(path))
    except OSError as error:
        logger.warning("%s cannot be written (%s); the next run measures again; set FOVEAL_HOME", path, error)


def digest(key: Mapping[str, object]) -> str:
    """Return a short name for a set of conditions."""
    return hashlib.sha256(json.dumps(_plain(key), sort_keys=True).encode()).hexdigest()[:32]


def _file_of(key: Mapping[str, object]) -> Path:
    return cache_folder() / "verdicts" / f"{digest(key)}.json"


def _plain(key: Mapping[str, object]) -> dict[str, object]:
    """Return the conditions as JSON gives them back."""
    return json.loads(json.dumps(dict(key)))
