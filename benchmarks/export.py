"""The verdict on every export of a model in every precision, as one table: agreement, speed, size.

    python benchmarks/export.py                                  # ViT-S/14 at 224, random weights: minutes
    python benchmarks/export.py --model MODEL --images FOLDER    # a model of yours, on your images

Each row is what `foveal export` writes into export.json. Without --images the photographs of the extra `demo` are used;
int8 is calibrated on all but the last 8 of them and judged on those. Speeds of an export and of PyTorch in fp32 are
measured in turns, so that a neighbour on the machine slows both: "x" is the export's over PyTorch's in the same row,
and what to compare.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from inference import random_backbone

from foveal.backbone.card import Card
from foveal.backbone.weights import save_model
from foveal.engine.gate import shown
from foveal.errors import FovealError
from foveal.export.card import ExportCard, ExportRefused
from foveal.export.onnx import export_onnx
from foveal.export.openvino import export_openvino
from foveal.export.verdict_card import Verdict

EXPORTS: dict[str, tuple[Callable[..., ExportCard], tuple[str, ...]]] = {
    "onnx": (export_onnx, ("fp32", "int8")),
    "openvino": (export_openvino, ("fp32", "fp16", "int8")),
}
HEADER = (
    "| export | verdict | class tokens, min / mean | patches, min / mean | same neighbour | one image, ms (x) "
    "| images/s (x) | MB |\n|---|---|---|---|---|---|---|---|"
)


def cards(model: Path, folder: Path, options: dict[str, Any]) -> Iterator[tuple[str, ExportCard | FovealError]]:
    """Yield the name and the card of each export, refused ones too, or why there is none."""
    for name, (export, precisions) in EXPORTS.items():
        for precision in precisions:
            label = f"{name} {precision}"
            try:
                yield label, export(model, folder / label.replace(" ", "_"), precision=precision, **options)
            except ExportRefused as refused:
                yield label, refused.card
            except FovealError as error:
                yield label, error


def row(label: str, card: ExportCard) -> str:
    """Return a card's verdict as a row of the table."""
    verdict = Verdict.model_validate(card.verdict)
    export, original = verdict.export, verdict.original
    assert export.size_bytes is not None
    neighbour = "" if verdict.same_neighbour is None else f"{100 * verdict.same_neighbour:.0f} %"
    cells = (
        label,
        "passed" if verdict.passed else "refused",
        f"{shown(verdict.cls.min)} / {shown(verdict.cls.mean)}",
        f"{shown(verdict.patches.min)} / {shown(verdict.patches.mean)}",
        neighbour,
        f"{export.latency_ms:.1f} ({original.latency_ms / export.latency_ms:.2f})",
        f"{export.images_per_s:.1f} ({export.images_per_s / original.images_per_s:.2f})",
        f"{export.size_bytes / 1e6:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; random ViT-S/14 if left out")
    parser.add_argument("--images", help="at least 16 real images")
    parser.add_argument("--limit", type=float, default=0.999)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(EXPORTS), help="formats; all if left out")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = options.model or folder / "model"
        if options.model is None:
            backbone = random_backbone("vits")
            save_model(model, backbone, Card(name="ViT-S/14, random", backbone=backbone.config, licence="own"))
        for name in set(EXPORTS).difference(options.only or EXPORTS):
            del EXPORTS[name]
        print(HEADER)
        for label, found in cards(model, folder, {"images": options.images, "limit": options.limit}):
            print(f"| {label} | {found} |" if isinstance(found, FovealError) else row(label, found), flush=True)
            for note in [] if isinstance(found, FovealError) else found.notes:
                logging.info("%s: %s", label, note)


if __name__ == "__main__":
    main()
