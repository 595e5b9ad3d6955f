"""Bytes per image and cosine lost of each way to store patch tokens: ViT-S/14 at 224 pixels, on real photographs.

    python benchmarks/store_bytes.py --images some/folder --limit 64
    python benchmarks/store_bytes.py --images some/folder --model model   # your weights

Without --model the weights are random with LayerScale 1; trained weights have outlier channels: measure yours. The PCA
is fitted on the images that are measured. Cosines are those of each patch to its float32 tokens, after mapping back.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import foveal
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card
from foveal.engine.torch_engine import TorchEngine
from foveal.features.extract import Model
from foveal.features.extraction import open_extraction
from foveal.features.packing import cosines
from foveal.features.stamp import StoreSettings
from foveal.features.store import FeatureStore
from foveal.images.imageset import ImageSet

EXACT = StoreSettings(tokens=("patches",), dtype="float32", batch_size=8)
WAYS = {
    "float16": replace(EXACT, dtype="float16"),
    "int8": replace(EXACT, dtype="int8"),
    "PCA 64, float16": replace(EXACT, dtype="float16", pca=64),
    "PCA 64, int8": replace(EXACT, dtype="int8", pca=64),
}


def random_model() -> Model:
    """Return ViT-S/14 with random weights."""
    config = backbone_config("vits", layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    return Model(TorchEngine(backbone), Card(name="random ViT-S/14", backbone=config))


def extracted(folder: Path, model: Model, images: ImageSet, settings: StoreSettings) -> FeatureStore:
    """Extract into a folder and open the store."""
    open_extraction(folder, model, images, settings).run(max_bad_share=0.0)
    return FeatureStore.open(folder)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder of photographs")
    parser.add_argument("--model", type=Path, help="model folder; default: random ViT-S/14")
    parser.add_argument("--limit", type=int, default=64, help="images, evenly spaced in the folder")
    args = parser.parse_args()
    model = foveal.load(args.model) if args.model else random_model()
    images = ImageSet.open(args.images)
    images = images.subset(range(0, len(images), max(1, len(images) // args.limit))[: args.limit])
    table = Table("patches as", "bytes an image", "1,000,000 images", "cosine, least", "mean")
    with tempfile.TemporaryDirectory() as folder:
        exact = extracted(Path(folder) / "exact", model, images, EXACT)
        reference = exact.read("patches")
        table.add_row("float32", *_sizes(exact), "1", "1")
        for name, settings in WAYS.items():
            store = extracted(Path(folder) / name, model, images, settings)
            found, projection = store.read("patches"), store.projection("patches")
            found = found if projection is None else projection.invert(found)
            cosine = cosines(found, reference)
            table.add_row(name, *_sizes(store), f"{cosine.min():.6f}", f"{cosine.mean():.6f}")
    Console().print(f"{model.card.name}, {len(images)} images", table)


def _sizes(store: FeatureStore) -> tuple[str, str]:
    each = store.card.bytes_per_image["patches"]
    return f"{each:,}", f"{each / 1e3:,.0f} GB"


if __name__ == "__main__":
    main()
