"""Images per second of `foveal extract` from 500 x 375 JPEG files to a store on the disk, against the model alone.

    python benchmarks/extract.py                      # photographs of scikit-image, ViT-S/14 with random weights
    python benchmarks/extract.py --model model --num-images 1024

Both are measured in turns in one run, on the same number of images, so that a machine that changes its speed changes it
for both. "model alone" encodes batches that are decoded and prepared beforehand; "extract" reads, hashes, decodes,
prepares, encodes, packs, writes and syncs. The share of the medians is what the data path leaves of the model's rate.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from data_path import encode, load_photographs
from rich.console import Console
from rich.table import Table
from store_bytes import random_model

import foveal
from foveal.features.extract import Model
from foveal.features.extraction import open_extraction
from foveal.features.stamp import StoreSettings
from foveal.features.tokens import encode_arrays
from foveal.images.imageset import ImageSet


def write_photographs(folder: Path, num_images: int) -> None:
    """Write JPEG files of 500 x 375 pixels, quality 90, out of the photographs of scikit-image in turn."""
    files = [encode(photograph, size=(500, 375), format_name="JPEG") for photograph in load_photographs(None)]
    folder.mkdir()
    for number in range(num_images):
        (folder / f"{number:05d}.jpg").write_bytes(files[number % len(files)])


def model_alone(model: Model, prepared: list[np.ndarray], settings: StoreSettings) -> float:
    """Return images per second of encoding prepared images."""
    start = time.perf_counter()
    for first in range(0, len(prepared), settings.batch_size):
        batch = prepared[first : first + settings.batch_size]
        encode_arrays(model.engine, batch, tokens=settings.tokens, patch_size=model.card.backbone.patch_size)
    return len(prepared) / (time.perf_counter() - start)


def extraction(model: Model, images: ImageSet, settings: StoreSettings) -> float:
    """Return images per second of extracting a set into a new store."""
    with tempfile.TemporaryDirectory() as folder:
        opened = open_extraction(Path(folder) / "store", model, images, settings)
        start = time.perf_counter()
        opened.run()
        return len(images) / (time.perf_counter() - start)


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; default: random ViT-S/14")
    parser.add_argument("--num-images", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", default="cls,patches")
    args = parser.parse_args()
    model = foveal.load(args.model) if args.model else random_model()
    settings = StoreSettings(tokens=tuple(args.tokens.split(",")), batch_size=8)
    rates: dict[str, list[float]] = {"model alone": [], "extract": []}
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder) / "photos", args.num_images)
        images = ImageSet.open(Path(folder) / "photos")
        preprocess = model.preprocessing()
        prepared = [preprocess(images.decode(row)) for row in range(len(images))]
        model_alone(model, prepared[: settings.batch_size], settings)  # warm up
        for _ in range(args.turns):
            rates["model alone"].append(model_alone(model, prepared, settings))
            rates["extract"].append(extraction(model, images, settings))
    table = Table("images/s", "median", "best", title=f"{model.card.name}, {args.num_images} JPEG files, {args.tokens}")
    for name, values in rates.items():
        table.add_row(name, f"{median(values):.1f}", f"{max(values):.1f}")
    console = Console()
    console.print(table)
    console.print(f"extract keeps {median(rates['extract']) / median(rates['model alone']):.1%} of the model's rate")


if __name__ == "__main__":
    main()
