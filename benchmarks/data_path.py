"""Images per second of one core from JPEG or PNG bytes to the crops of DINOv2 multi-crop, and where the time goes.

    python benchmarks/data_path.py                      # photographs of scikit-image
    python benchmarks/data_path.py --images some/folder # your own

Two settings: "photo", 500 x 375 JPEG quality 90 with 2 x 224 and 8 x 98 crops, and "small", 32 x 32 PNG with 2 x 32 and
4 x 20 crops. The peer is the official pipeline written with Pillow (crop, resize, ImageEnhance, HSV, torch convolution
for the blur), run on the same random choices. Both end at uint8 crops: normalisation belongs to the device.

All rows are measured in turns of a few images, so that a machine that changes its speed changes it for all of them.
Columns: the median and the best turn.
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
from foveal.pretrain import augment, views
from foveal.pretrain.views import ViewPlan, ViewSettings

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


# ---- measuring ----------------------------------------------------------------------------------------------------


def foveal_pipeline(data: bytes, index: int, settings: ViewSettings) -> views.Views:
    """Return the crops of one file, by this package."""
    return views.make_views(decode(data), settings=settings, seed=0, epoch=0, index=index)


def measure(files: list[bytes], settings: ViewSettings, *, turns: int, per_turn: int) -> dict[str, list[float]]:
    """Return seconds per image, one number a turn, of decoding alone and of both pipelines."""
    rows: dict[str, Callable[[bytes, int], object]] = {
        "decode alone": lambda data, index: decode(data),
        "decode + views": lambda data, index: foveal_pipeline(data, index, settings),
        "the same with Pillow": lambda data, index: pillow_pipeline(data, index, settings),
    }
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(turns):
        for name, run in rows.items():
            start = time.perf_counter()
            for index in range(turn * per_turn, (turn + 1) * per_turn):
                run(files[index % len(files)], index)
            seconds[name].append((time.perf_counter() - start) / per_turn)
    return seconds


def profile(files: list[bytes], settings: ViewSettings, *, num_images: int) -> dict[str, float]:
    """Return seconds per image of each operation, in the order in which a view meets them."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **options)
        spent[name] += (time.perf_counter() - start) / num_images
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
    speeds = Table("one core, images/s", "median", "best", title=name)
    for row, values in seconds.items():
        speeds.add_row(row, f"{1 / median(values):,.0f}", f"{1 / min(values):,.0f}")
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
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    photographs = load_photographs(args.images)
    for name in MODES if args.mode == "both" else [args.mode]:
        size, format_name, settings = MODES[name]
        files = [encode(image, size=size, format_name=format_name) for image in photographs]
        per_turn = 12 if name == "photo" else 100
        measure(files, settings, turns=1, per_turn=per_turn)  # warm up
        seconds = measure(files, settings, turns=args.turns, per_turn=per_turn)
        report(name, seconds, profile(files, settings, num_images=10 * per_turn))


if __name__ == "__main__":
    main()
