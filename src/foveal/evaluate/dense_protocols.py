"""How masks and depth are fitted and measured: the published protocols by kind of head and data, and their variants.

A protocol in which anything differs from the published one says so in its name, so that no published figure stands
beside it and no row takes the place of another.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

from foveal.errors import FovealError
from foveal.evaluate.depth import Crop
from foveal.images.preprocess import Size
from foveal.tasks.kinds import find_kind
from foveal.tasks.protocols import FitSettings, fit_settings
from foveal.tasks.windows import CROP_SIZE, STRIDE

_SCALES = (1.0, 1.32, 1.73, 2.28, 3.0)
_STEPS, _DEPTH_STEPS, _BATCH_SIZE = 40_000, 38_400, 16


@dataclass(frozen=True)
class SegmentProtocol:
    """How masks are fitted and measured.

    Attributes:
        name: "segment", with what differs from the published protocol.
        fit: settings of the fit; its `size` is that of the test pictures too.
        scales: of the size in the test.
        flip: average with the mirrored pictures.
        crop_size: of the windows in the test, pixels.
        stride: of the windows, pixels.
    """

    name: str
    fit: FitSettings
    scales: tuple[float, ...]
    flip: bool
    crop_size: int
    stride: int


@dataclass(frozen=True)
class DepthProtocol:
    """How depth is fitted and measured.

    Attributes:
        name: "depth", with what differs from the published protocol.
        fit: settings of the fit; its `size` is that of the test pictures too.
        min_depth: start of the range, metres.
        max_depth: end of the range, metres.
        crop: the part of the test pictures that counts.
        flip: average with the mirrored pictures.
    """

    name: str
    fit: FitSettings
    min_depth: float
    max_depth: float
    crop: Crop
    flip: bool = True


def segment_protocol(
    kind: str,
    data: str,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    size: int | Literal["own"] | None = None,
    crop_size: int | Literal["whole"] | None = None,
    seed: int = 0,
) -> SegmentProtocol:
    """Return the published protocol for masks with some of its settings changed; None changes nothing.

    40,000 steps of 16 crops. "linear": short side 512, resized by 0.5 to 2, crops and windows of 512, windows every
    341. "ms": short side 640, resized by 1 to 3, crops and windows of 640, windows every 320; in the test five scales
    from 1 to 3, and mirrored. Other kinds are measured as "linear" is. Cityscapes keeps its own size.

    Args:
        kind: of the head.
        data: name of the data.
        steps: of the fit.
        batch_size: pictures a step.
        learning_rate: the highest.
        size: short side of the pictures, pixels, or "own".
        crop_size: of crops and windows, pixels; or "whole": features of whole pictures, computed once.
        seed: of the fit.

    Raises:
        FovealError: an unknown kind, or settings out of range.

    Source: arXiv 2304.07193, section 7.4, and the configurations published with the heads.
    """
    find_kind("segmentation", kind)
    multi = kind == "ms"
    side = 640 if multi else CROP_SIZE
    published = fit_settings(
        "segmentation",
        steps=_STEPS,
        batch_size=_BATCH_SIZE,
        size=None if data == "Cityscapes" else side,
        crop_size=side,
        scales=(1.0, 3.0) if multi else None,
    )
    fit = _changed(
        published, steps=steps, batch_size=batch_size, learning_rate=learning_rate, size=size, crop=crop_size
    )
    window = crop_size if isinstance(crop_size, int) else side
    return SegmentProtocol(
        name=_name("segment", fit, published),
        fit=replace(fit, seed=seed),
        scales=_SCALES if multi else (1.0,),
        flip=multi,
        crop_size=window,
        stride=window // 2 if multi else STRIDE if window == CROP_SIZE else max(window * 2 // 3, 1),
    )


def depth_protocol(
    kind: str,
    data: str,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    size: int | Literal["own"] | None = None,
    crop_size: Size | Literal["whole"] | None = None,
    max_depth: float | None = None,
    crop: Crop | None = None,
    seed: int = 0,
) -> DepthProtocol:
    """Return the published protocol for depth with some of its settings changed; None changes nothing.

    38,400 steps of 16 crops of 416 x 544 pixels (KITTI 352 x 704), mirrored and whole pictures in the test. What
    counts: NYUd up to 10 m, in the crop of Eigen et al.; KITTI up to 80 m, in that of Garg et al.; other data up to
    10 m, everywhere.

    Args:
        kind: of the head.
        data: name of the data.
        steps: see `segment_protocol`, also for the next four.
        batch_size: see there.
        learning_rate: see there.
        size: see there.
        crop_size: of crops; see there.
        max_depth: end of the range, metres.
        crop: the part of the test pictures that counts.
        seed: of the fit.

    Raises:
        FovealError: an unknown kind, or settings out of range.
    """
    find_kind("depth", kind)
    kitti = data == "KITTI"
    farthest = 80.0 if kitti else 10.0
    usual: Crop = "garg" if kitti else "nyu" if data == "NYUd" else "none"
    published = fit_settings(
        "depth", steps=_DEPTH_STEPS, batch_size=_BATCH_SIZE, crop_size=(352, 704) if kitti else (416, 544)
    )
    fit = _changed(
        published, steps=steps, batch_size=batch_size, learning_rate=learning_rate, size=size, crop=crop_size
    )
    reach, part = farthest if max_depth is None else max_depth, crop or usual
    if not 0.001 < reach < inf:
        raise FovealError(f"max_depth={reach:g}; the range begins at 0.001 m, give its end in metres")
    words = [f"up to {reach:g} m"] * (reach != farthest) + [f"crop {part}"] * (part != usual)
    return DepthProtocol(_name("depth", fit, published, *words), replace(fit, seed=seed), 0.001, reach, part)


def _changed(
    published: FitSettings,
    *,
    steps: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    size: int | Literal["own"] | None,
    crop: Size | Literal["whole"] | None,
) -> FitSettings:
    numbers: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    return replace(
        published,
        **{name: value for name, value in numbers.items() if value is not None},
        size=published.size if size is None else size if isinstance(size, int) else None,
        crop_size=published.crop_size if crop is None else None if isinstance(crop, str) else crop,
    )


def _name(base: str, fit: FitSettings, published: FitSettings, *words: str) -> str:
    """Return the name of a protocol: the published one alone is called by its bare name."""
    found = []
    if (fit.steps, fit.batch_size) != (published.steps, published.batch_size):
        found.append(f"{fit.steps} steps of {fit.batch_size}")
    if fit.learning_rate != published.learning_rate:
        found.append(f"rate {fit.learning_rate:g}")
    if fit.size != published.size:
        found.append("own size" if fit.size is None else f"size {fit.size}")
    if fit.crop_size != published.crop_size:
        found.append(f"crops of {_shown(fit.crop_size)}" if fit.crop_size else "whole pictures")
    return ", ".join([base, *found, *words])


def _shown(size: Size) -> str:
    return f"{size[0]}x{size[1]}" if isinstance(size, tuple) else str(size)
