"""Images per second of one core from JPEG or PNG bytes to the crops of DINOv2 multi-crop, and where the time goes.

    python benchmarks/data_path.py                      # photographs of scikit-image
    python benchmarks/data_path.py --images some/folder # your own
    python benchmarks/data_path.py --torchvision        # with a second peer, where torchvision is installed

Two settings: "photo", 500 x 375 JPEG quality 90 with 2 x 224 and 8 x 98 crops, and "small", 32 x 32 PNG with 2 x 32 and
4 x 20 crops. The first peer is the official pipeline written with Pillow (crop, resize, ImageEnhance, HSV, torch
convolution for the blur), run on the same random choices, to uint8 crops as ours: normalisation belongs to the device.
The second is composed of torchvision's own transforms with the published parameters and its own random choices; it
ends at normalised float32 crops, and so does the row of ours that names it.

All rows are measured in turns of a few images, so that a machine that changes its speed changes it for all of them.
Columns: the median and the best turn, and the median of each turn's speed over the last peer's in the same turn. Time
is that of the processor, so that other processes on the same core do not count (those that share its cache do).
"""

import argparse
import io
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from rich.console import Console
from rich.table import Table

from foveal.images.decode import decode
from foveal.images.preprocess import IMAGENET_MEAN, IMAGENET_STD
from foveal.pretrain.data import augment, loader, views
from foveal.pretrain.data.views import ViewPlan, ViewSettings

BICUBIC = Image.Resampling.BICUBIC
MODES = {
    "photo": ((500, 375), "JPEG", ViewSettings()),
    "small": ((32, 32), "PNG", ViewSettings(global_size=32, local_size=20, num_local=4, blur_kernel_size=3)),
}
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field")


def load_photographs(folder: Path | None, *, limit: int = 32) -> list[Image.Image]:
    """Return up to `limit` photographs of a folder, or those that come with scikit-image."""
    if folder is None:
        from skimage import data

        return [Image.fromarray(getattr(data, name)()) for name in PHOTOGRAPHS]
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})[:limit]
    if not paths:
        raise SystemExit(f"{folder} holds no .jpg or .png; point --images to a folder of photographs.")
    return [Image.open(path).convert("RGB") for path in paths]


def encode(image: Image.Image, *, size: tuple[int, int], format_name: str) -> bytes:
    """Return the file of an image cut and resized to `size` (width, height)."""
    buffer = io.BytesIO()
    ImageOps.fit(image, size, BICUBIC).save(buffer, format_name, **({"quality": 90} if format_name == "JPEG" else {}))
    return buffer.getvalue()


def plan(image_h: int, image_w: int, index: int, settings: ViewSettings) -> list[tuple[ViewPlan, int]]:
    """Return the plan and the size in pixels of each view."""
    planned = views.plan_views(image_h, image_w, settings=settings, seed=0, epoch=0, index=index)
    return [(p, settings.global_size if k < 2 else settings.local_size) for k, p in enumerate(planned)]


# ---- the peer: the official pipeline with Pillow ------------------------------------------------------------------


def pillow_hue(image: Image.Image, turn: float) -> Image.Image:
    """Shift the hue in Pillow's 8-bit HSV."""
    hue, saturation, value = image.convert("HSV").split()
    shifted = np.asarray(hue) + np.uint8(int(turn * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")


PILLOW_JITTER: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    pillow_hue,
)


def pillow_blur(image: Image.Image, sigma: float, kernel_size: int) -> Image.Image:
    """Blur by one two-dimensional convolution in float32."""
    radius = kernel_size // 2
    taps = torch.exp(-0.5 * (torch.linspace(-radius, radius, kernel_size) / sigma) ** 2)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    padded = F.pad(pixels, [radius] * 4, mode="reflect")
    blurred = F.conv2d(padded, kernel.expand(3, 1, kernel_size, kernel_size), groups=3).round_().to(torch.uint8)
    return Image.fromarray(blurred[0].permute(1, 2, 0).contiguous().numpy())


def pillow_view(image: Image.Image, plan: ViewPlan, *, size: int, settings: ViewSettings) -> np.ndarray:
    """Carry out one plan with Pillow."""
    top, left, height, width = plan.box
    crop = image.crop((left, top, left + width, top + height)).resize((size, size), BICUBIC)
    crop = ImageOps.mirror(crop) if plan.hflip else crop
    for operation, factor in plan.jitter:
        crop = PILLOW_JITTER[operation](crop, factor)
    crop = Image.merge("RGB", [crop.convert("L")] * 3) if plan.grayscale else crop
    if plan.blur_sigma is not None:
        crop = pillow_blur(crop, plan.blur_sigma, settings.blur_kernel_size)
    return np.asarray(ImageOps.solarize(crop, settings.solarize_threshold) if plan.solarize else crop)


def pillow_pipeline(data: bytes, index: int, settings: ViewSettings) -> list[np.ndarray]:
    """Return the crops of one file, by Pillow."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    chosen = plan(image.height, image.width, index, settings)
    return [pillow_view(image, p, size=size, settings=settings) for p, size in chosen]


# ---- the peer: torchvision's transforms ---------------------------------------------------------------------------


def torchvision_pipeline(settings: ViewSettings) -> Callable[[bytes, int], object]:
    """Return a function from the bytes of one file to its crops as normalised tensors, by torchvision's transforms."""
    # A torchvision built for another torch lacks its compiled operators, and fails on import where these are unknown.
    # The transforms need none of them.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import transforms as T

    def view(size: int, scale: tuple[float, float], blur: float, solarize: float) -> Callable[[Image.Image], Any]:
        jitter = T.ColorJitter(settings.brightness, settings.contrast, settings.saturation, settings.hue)
        return T.Compose(
            [
                T.RandomResizedCrop(size, scale=scale, ratio=settings.ratio, interpolation=T.InterpolationMode.BICUBIC),
                T.RandomHorizontalFlip(settings.hflip_probability),
                T.RandomApply([jitter], p=settings.jitter_probability),
                T.RandomGrayscale(settings.grayscale_probability),
                T.RandomApply([T.GaussianBlur(settings.blur_kernel_size, settings.blur_sigma)], p=blur),
                T.RandomSolarize(settings.solarize_threshold, p=solarize),
                T.ToTensor(),
                T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    blurs = views._BLUR_PROBABILITIES[settings.blur]
    solarize = (0.0, settings.solarize_probability)
    globals_ = [view(settings.global_size, settings.global_scale, blurs[k], solarize[k]) for k in range(2)]
    local = view(settings.local_size, settings.local_scale, blurs[2], 0.0)

    def run(data: bytes, _index: int) -> object:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return [transform(image) for transform in [*globals_, *[local] * settings.num_local]]

    return run


# ---- measuring ----------------------------------------------------------------------------------------------------


def foveal_pipeline(data: bytes, index: int, settings: ViewSettings) -> views.Views:
    """Return the crops of one file, by this package."""
    return views.make_views(decode(data), settings=settings, seed=0, epoch=0, index=index)


def normalised_pipeline(data: bytes, index: int, settings: ViewSettings) -> object:
    """Return the crops of one file, by this package, normalised here instead of on the device."""
    crops = foveal_pipeline(data, index, settings)
    return [
        loader._normalise(torch.from_numpy(group), list(IMAGENET_MEAN), list(IMAGENET_STD))
        for group in (crops.global_crops, crops.local_crops)
    ]


def pipelines(settings: ViewSettings, *, torchvision: bool) -> dict[str, Callable[[bytes, int], object]]:
    """Return what is measured, by the name of its row; the last row is the one that the others are compared with."""
    on_device = settings.model_copy(update={"photometric": "device"})
    rows: dict[str, Callable[[bytes, int], object]] = {
        "decode alone": lambda data, index: decode(data),
        "decode + views": lambda data, index: foveal_pipeline(data, index, settings),
        "the same, photometric=device": lambda data, index: foveal_pipeline(data, index, on_device),
        "decode + views + normalise": lambda data, index: normalised_pipeline(data, index, settings),
        "the same choices with Pillow": lambda data, index: pillow_pipeline(data, index, settings),
    }
    if torchvision:
        rows["torchvision's transforms"] = torchvision_pipeline(settings)
    return rows


def measure(
    rows: dict[str, Callable[[bytes, int], object]], files: list[bytes], *, turns: int, per_turn: int
) -> dict[str, list[float]]:
    """Return seconds per image of every row, one number a turn."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(turns):
        for name, run in rows.items():
            start = time.process_time()
            for index in range(turn * per_turn, (turn + 1) * per_turn):
                run(files[index % len(files)], index)
            seconds[name].append((time.process_time() - start) / per_turn)
    return seconds


def profile(files: list[bytes], settings: ViewSettings, *, num_images: int) -> dict[str, float]:
    """Return seconds per image of each operation, in the order in which a view meets them."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        start = time.process_time()
        result = function(*args, **options)
        spent[name] += (time.process_time() - start) / num_images
        return result

    for index in range(num_images):
        image = timed("decode", decode, files[index % len(files)])
        for p, size in timed("plan", plan, *image.shape[:2], index, settings):
            crop = timed("crop and resize", views._resized_crop, image, p.box, size=size)
            crop = timed("hflip", augment.hflip, crop) if p.hflip else crop
            for operation, factor in p.jitter:
                function = views._JITTER[operation]
                crop = timed(function.__name__, function, crop, factor)
            crop = timed("to_grayscale", augment.to_grayscale, crop) if p.grayscale else crop
            if p.blur_sigma is not None:
                taps = {"sigma": p.blur_sigma, "kernel_size": settings.blur_kernel_size}
                crop = timed("gaussian_blur", augment.gaussian_blur, crop, **taps)
            if p.solarize:
                timed("solarize", augment.solarize, crop, settings.solarize_threshold)
    return dict(spent)


def report(name: str, seconds: dict[str, list[float]], spent: dict[str, float]) -> None:
    """Print both tables."""
    console = Console()
    peer = list(seconds)[-1]
    speeds = Table("one core, images/s", "median", "best", f"times {peer}", title=name)
    for row, values in seconds.items():
        times = median(theirs / ours for theirs, ours in zip(seconds[peer], values, strict=True))
        speeds.add_row(row, f"{1 / median(values):,.0f}", f"{1 / min(values):,.0f}", f"{times:.1f}")
    console.print(speeds)
    parts = Table("operation", "us per image", "share", title=f"{name}: where the time goes")
    for row, value in spent.items():
        parts.add_row(row, f"{1e6 * value:,.0f}", f"{value / sum(spent.values()):.0%}")
    console.print(parts)


def main() -> None:
    """Measure the modes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs; default: those of scikit-image")
    parser.add_argument("--mode", choices=[*MODES, "both"], default="both")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--torchvision", action="store_true", help="measure torchvision's transforms too")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    photographs = load_photographs(args.images)
    for name in MODES if args.mode == "both" else [args.mode]:
        size, format_name, settings = MODES[name]
        files = [encode(image, size=size, format_name=format_name) for image in photographs]
        per_turn = 12 if name == "photo" else 100
        rows = pipelines(settings, torchvision=args.torchvision)
        measure(rows, files, turns=1, per_turn=per_turn)  # warm up
        seconds = measure(rows, files, turns=args.turns, per_turn=per_turn)
        report(name, seconds, profile(files, settings, num_images=10 * per_turn))


if __name__ == "__main__":
    main()
