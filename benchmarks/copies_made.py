"""Photographs and their edited copies, of which it is known what was copied from what: the data of copies.py.

Every original gets one copy of each family of edits, of a strength that goes round from original to original:

| family | kinds |
|---|---|
| crop | a part of 90, 70 or 50 % of each side, at a random place |
| compression | JPEG of quality 10, 30 or 50; all others are saved with 90 |
| size | sides of 25, 50 or 75 % |
| flip | left and right |
| colour | brightness, contrast, saturation, hue, grayscale |
| overlay | a line of text, a face as emojis have it, a sticker |
| screen | a border, or a window with its title bar on a background |
"""

import hashlib
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

ORIGINAL = "original"
Edit = Callable[[Image.Image, np.random.Generator], Image.Image]


def crop(image: Image.Image, draw: np.random.Generator, *, part: float) -> Image.Image:
    """Cut out a part of each side."""
    width, height = (max(8, round(side * part)) for side in image.size)
    left, top = draw.integers(image.width - width + 1), draw.integers(image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


def compressed(image: Image.Image, draw: np.random.Generator, *, quality: int) -> Image.Image:
    """Save as JPEG of a quality and read again."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def resized(image: Image.Image, draw: np.random.Generator, *, part: float) -> Image.Image:
    """Shrink both sides."""
    width, height = (max(8, round(side * part)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def flipped(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Exchange left and right."""
    return ImageOps.mirror(image)


def enhanced(
    image: Image.Image, draw: np.random.Generator, *, how: Callable[[Image.Image], ImageEnhance._Enhance]
) -> Image.Image:
    """Take a factor of 0.5 to 0.75, or of 1.35 to 1.8, of Pillow's brightness, contrast or colour."""
    factor = draw.uniform(0.5, 0.75) if draw.random() < 0.5 else draw.uniform(1.35, 1.8)
    return how(image).enhance(factor)


def hue(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Turn the circle of colours by 25 to 70 degrees either way."""
    hsv = np.array(image.convert("HSV"))
    turn = round(draw.uniform(25, 70) / 360 * 256) * (1 if draw.random() < 0.5 else -1)
    hsv[..., 0] = (hsv[..., 0].astype(int) + turn) % 256
    return Image.fromarray(hsv, "HSV").convert("RGB")


def grayscale(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Take the colours away."""
    return image.convert("L").convert("RGB")


def text(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Write a line of 6 to 14 letters, a seventh to a fifth of the short side high."""
    letters = "".join(draw.choice(list("ABCDEFGHIJKLMNOPRSTUVW     "), draw.integers(6, 15)))
    font = ImageFont.load_default(size=round(min(image.size) * draw.uniform(0.14, 0.2)))
    place = (draw.uniform(0.02, 0.3) * image.width, draw.uniform(0.05, 0.8) * image.height)
    edited = image.copy()
    ImageDraw.Draw(edited).text(place, letters, fill=_colour(draw), font=font, stroke_width=1, stroke_fill="black")
    return edited


def emoji(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Put a round yellow face on it, a quarter to two fifths of the short side wide."""
    size = round(min(image.size) * draw.uniform(0.25, 0.4))
    face = Image.new("RGBA", (size, size))
    pen = ImageDraw.Draw(face)
    pen.ellipse((0, 0, size - 1, size - 1), fill=(255, 205, 50), outline=(180, 120, 0), width=max(1, size // 24))
    for centre in (0.33, 0.67):
        pen.ellipse(_box(size, centre, 0.38, 0.08), fill=(70, 40, 0))
    pen.arc(_box(size, 0.5, 0.52, 0.27), 20, 160, fill=(70, 40, 0), width=max(1, size // 14))
    return _pasted(image, face, draw)


def sticker(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Put a turned label with a pentagon on it, a third to a half of the short side wide."""
    size = round(min(image.size) * draw.uniform(0.33, 0.5))
    label = Image.new("RGBA", (size, size))
    pen = ImageDraw.Draw(label)
    pen.rounded_rectangle((0, size // 5, size - 1, size - size // 5), size // 8, fill=_colour(draw), outline="white")
    pen.regular_polygon((size / 2, size / 2, size / 4), 5, fill=_colour(draw))
    return _pasted(image, label.rotate(draw.uniform(-40, 40), expand=True), draw)


def border(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Put a border of one colour around it, 10 to 25 % of a side at each of two opposite sides or at all four."""
    share = draw.uniform(0.1, 0.25)
    wide, high = round(image.width * share), round(image.height * share)
    sides = [(wide, high, wide, high), (wide, 0, wide, 0), (0, high, 0, high)][draw.integers(3)]
    return ImageOps.expand(image, sides, fill=("black", "white", _colour(draw))[draw.integers(3)])


def window(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Show it in a window with a title bar, three buttons and an address, on a background."""
    bar, edge = max(10, image.height // 8), round(min(image.size) * draw.uniform(0.04, 0.15))
    screen = Image.new("RGB", (image.width + 2 * edge, image.height + bar + 2 * edge), _colour(draw))
    pen = ImageDraw.Draw(screen)
    light = bool(draw.integers(2))
    grey = (225, 225, 228) if light else (50, 50, 55)
    pen.rectangle((edge, edge, edge + image.width - 1, edge + bar), fill=grey)
    for number, colour in enumerate(((237, 106, 94), (245, 191, 79), (98, 197, 84))):
        centre = edge + round((number + 0.7) * bar * 0.7)
        pen.ellipse((centre - bar // 5, edge + bar * 3 // 10, centre + bar // 5, edge + bar * 7 // 10), fill=colour)
    address = (edge + 3 * bar, edge + bar // 4, edge + image.width - bar // 2, edge + bar * 3 // 4)
    if address[2] > address[0]:
        pen.rounded_rectangle(address, bar // 4, fill="white" if light else (80, 80, 85))
    screen.paste(image, (edge, edge + bar))
    return screen


FAMILIES: dict[str, dict[str, Edit]] = {
    "crop": {f"crop {part}": partial(crop, part=part / 100) for part in (90, 70, 50)},
    "compression": {f"jpeg {quality}": partial(compressed, quality=quality) for quality in (50, 30, 10)},
    "size": {f"size {part}": partial(resized, part=part / 100) for part in (75, 50, 25)},
    "flip": {"flip": flipped},
    "colour": {
        "brightness": partial(enhanced, how=ImageEnhance.Brightness),
        "contrast": partial(enhanced, how=ImageEnhance.Contrast),
        "saturation": partial(enhanced, how=ImageEnhance.Color),
        "hue": hue,
        "grayscale": grayscale,
    },
    "overlay": {"text": text, "emoji": emoji, "sticker": sticker},
    "screen": {"border": border, "window": window},
}
_ROUND = 30  # originals until every family has come round to its first kind
FAMILY_OF = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}


def _colour(draw: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in draw.integers(0, 256, 3))
    return red, green, blue


def _box(size: int, x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    return (x - radius) * size, (y - radius) * size, (x + radius) * size, (y + radius) * size


def _pasted(image: Image.Image, mark: Image.Image, draw: np.random.Generator) -> Image.Image:
    edited = image.copy()
    place = [int(draw.integers(max(1, side - size + 1))) for side, size in zip(image.size, mark.size, strict=True)]
    edited.paste(mark, (place[0], place[1]), mark)
    return edited


@dataclass(frozen=True)
class Truth:
    """What was copied from what.

    Attributes:
        files: one an image.
        original: (N,) number of the original of each; its own for an original.
        kind: the edit of each, "original" for none.
        label: the class of what it shows, for photographs of the same that are no copies.
        half: (N,) 0 or 1, of the original: thresholds are chosen on 0 and measured on 1.
    """

    files: list[Path]
    original: np.ndarray
    kind: list[str]
    label: list[str]
    half: np.ndarray


def make_copies(data: Path, out: Path, *, num_images: int, seed: int) -> Truth:
    """Write originals, as they are, and their edits into `out`/images, and what they are to `out`/truth.parquet.

    Args:
        data: folder with imagenet_sample, caltech101 and grocery.
        out: folder to make.
        num_images: about so many in all.
        seed: of the choice of originals, and of each edit.
    """
    images = out / "images"
    images.mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for number, (path, label) in enumerate(_originals(data, num_images // (1 + len(FAMILIES)), seed)):
        name = f"{number:05d}_{ORIGINAL}{path.suffix}"
        shutil.copyfile(path, images / name)
        rows.append({"file": name, "original": number, "kind": ORIGINAL, "label": label})
        photograph = Image.open(path).convert("RGB")
        for column, (family, kinds) in enumerate(FAMILIES.items()):
            kind = list(kinds)[number % len(kinds)]
            edited = kinds[kind](photograph, np.random.default_rng((seed, number, column)))
            name = f"{number:05d}_{family}.jpg"
            edited.save(images / name, quality=int(kind.split()[1]) if family == "compression" else 90)
            rows.append({"file": name, "original": number, "kind": kind, "label": label})
    pq.write_table(pa.Table.from_pylist(rows), out / "truth.parquet")
    return read_truth(out)


def read_truth(out: Path) -> Truth:
    """Read what `make_copies` wrote."""
    columns = pq.read_table(out / "truth.parquet").to_pydict()
    files = [out / "images" / name for name in columns["file"]]
    original = np.array(columns["original"])
    return Truth(files, original, columns["kind"], columns["label"], original // _ROUND % 2)


def _originals(data: Path, count: int, seed: int) -> list[tuple[Path, str]]:
    """Draw photographs, no two of the same bytes: 40 % of a class each (imagenet_sample), the others in classes."""
    generator = np.random.default_rng(seed)
    chosen: dict[str, tuple[Path, str]] = {}
    num_single = round(0.4 * count)
    for source, stop in (
        ("imagenet_sample", num_single),
        ("caltech101", (num_single + count) // 2),
        ("grocery", count),
    ):
        pool = sorted(path for path in (data / source).rglob("*.jpg") if "iconic" not in str(path))
        for index in generator.permutation(len(pool)):
            if len(chosen) == stop:
                break
            path = pool[index]
            label = f"{source} {path.stem if source == 'imagenet_sample' else path.parent.name}"
            chosen.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), (path, label))
    if len(chosen) < count:
        raise SystemExit(f"{data} holds {len(chosen)} different photographs, {count} are needed; ask for fewer images")
    return list(chosen.values())
