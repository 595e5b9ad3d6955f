"""Images a second of `foveal audit` on one core, beside decoding them and nothing else.

    python benchmarks/audit.py                      # photographs of scikit-image as JPEG, in two sizes
    python benchmarks/audit.py --images some/folder # your own, as they are

Rows: `decode` reads, hashes and decodes every image in full; `audit` is the whole verb, with its shard files and the
set that it keeps; `audit, PDQ` compares perceptual hashes too (extra curate). All are measured in turns, in time of the
processor, so that other processes on the same core do not count; the median of the turns is shown.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from skimage import data

from foveal.curate.audit import AuditSettings, run_audit
from foveal.images.decode import decode
from foveal.images.imageset import ImageSet

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "cat", "retina")
SIZES = {"500 x 375": ((500, 375), 180), "1600 x 1200": ((1600, 1200), 24)}  # copies of each photograph, each turned


def generated(folder: Path, size: tuple[int, int], num_copies: int) -> ImageSet:
    """Write distinct photographs of a size and return their set."""
    folder.mkdir()
    for name in PHOTOGRAPHS:
        photograph = Image.fromarray(getattr(data, name)())
        for number in range(num_copies):
            turned = photograph.rotate(360 * number / num_copies, Image.Resampling.BICUBIC)
            turned.resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}{number}.jpg", quality=90)
    return ImageSet.open(folder)


def decode_all(images: ImageSet) -> None:
    """Read, hash and decode every image."""
    for row in range(len(images)):
        contents = images.read(row)
        hashlib.sha256(contents)
        decode(contents)


def audit_all(images: ImageSet, max_distance: int | None) -> None:
    """Audit a set into a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        run_audit(images, out=Path(folder) / "audited", settings=AuditSettings(max_distance=max_distance))


def rates(images: ImageSet, ways: dict[str, Callable[[ImageSet], None]], *, num_turns: int) -> dict[str, float]:
    """Return images a second of each way, the median of turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(num_turns + 1):
        for name, way in ways.items():
            start = time.process_time()
            way(images)
            seconds[name].append(time.process_time() - start)
    return {name: len(images) / median(found[1:]) for name, found in seconds.items()}  # the first turn warms up


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of images  [default: generated]")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways: dict[str, Callable[[ImageSet], None]] = {
        "decode": decode_all,
        "audit": lambda images: audit_all(images, None),
        "audit, PDQ": lambda images: audit_all(images, 10),
    }
    with tempfile.TemporaryDirectory() as folder:
        if options.images:
            sets = {str(options.images): ImageSet.open(options.images)}
        else:
            sets = {name: generated(Path(folder) / name, *how) for name, how in SIZES.items()}
        print("| images | way | images/s |\n|---|---|---|")
        for name, images in sets.items():
            for way, rate in rates(images, ways, num_turns=options.turns).items():
                print(f"| {name} | {way} | {rate:,.0f} |")


if __name__ == "__main__":
    main()
