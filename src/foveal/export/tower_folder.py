"""`foveal export tower`: a folder that a vision-language model of transformers takes as its tower."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from foveal.backbone.huggingface import preprocessor_json
from foveal.backbone.licence import licence_named
from foveal.backbone.provenance import PREPROCESSOR
from foveal.backbone.vit import Tokens
from foveal.engine.gate import FAST_LIMIT
from foveal.errors import FovealError
from foveal.export.card import ExportCard, Port, publish_export, staged
from foveal.export.huggingface import judged
from foveal.export.real_images import real_batches
from foveal.export.source import open_source
from foveal.export.tower import DEFAULT_LAYER, OtherTower, VisionTower, import_transformers
from foveal.export.verdict import check_limit


def export_tower(
    model: str | Path,
    out: str | Path,
    *,
    layer: int = DEFAULT_LAYER,
    other: str | Path | None = None,
    other_licence: str = "unknown",
    images: str | Path | None = None,
    limit: float = FAST_LIMIT,
    accept_licence: str | None = None,
    num_heads: int | None = None,
) -> ExportCard:
    """Write a folder for `AutoModel`, once `foveal.export.tower_transformers` was imported, and compare it.

    Args:
        model: a model folder, a checkpoint, or a name in `foveal models`.
        out: the folder to write; nothing may be there yet.
        layer: whose tokens are given; see `VisionTower`.
        other: folder of a CLIP or SigLIP model of transformers, whose tokens stand beside.
        other_licence: name of its licence; the strictest terms of both apply.
        images: real images for the verdict; see `real_batches`.
        limit: least cosine of the tokens of the folder to those of the tower.
        accept_licence: licence that the user accepts, where the terms are not free.
        num_heads: attention heads, where neither the files nor the width tell.

    Raises:
        FovealError: transformers is missing; see also `VisionTower.load`, `open_source` and `real_batches`.
        ExportRefused: the folder does not give the tokens of the tower; it is kept aside.
    """
    check_limit(limit)
    transformers = import_transformers()
    from foveal.export.tower_transformers import VisionTowerModel, config_of

    others = [licence_named(other_licence)] if other is not None else []
    source = open_source(model, out=out, others=others, accept_licence=accept_licence, num_heads=num_heads)
    card = source.model.card
    beside = OtherTower.load(other) if other is not None else None
    tower = VisionTower(source.backbone, mean=card.mean, std=card.std, layer=layer, other=beside).eval()
    batches = real_batches(card, images)
    with staged(Path(out)) as staging:
        written = VisionTowerModel(config_of(tower, image_size=card.crop_size))
        written.tower = tower
        written.save_pretrained(staging)
        sizes = {"mean": card.mean, "std": card.std, "crop_size": card.crop_size, "resize_size": card.resize_size}
        (staging / PREPROCESSOR).write_text(json.dumps(preprocessor_json(**sizes), indent=2) + "\n")  # type: ignore[arg-type]
        export = source.export_card(
            "tower",
            inputs=[Port(name="pixel_values", dtype="float32", shape=["batch", len(card.mean), "height", "width"])],
            outputs=[Port(name="tokens", dtype="float32", shape=["batch", "grid_h*grid_w", tower.hidden_size])],
        )
        export.versions.update(transformers=str(transformers.__version__))
        candidate = TowerEngine(transformers.AutoModel.from_pretrained(staging).tower, name="transformers")
        reference = TowerEngine(tower, name="torch")
        export = judged(export, candidate, reference, batches, source=source, limit=limit, folder=staging)
        return publish_export(staging, Path(out), export)


class TowerEngine:
    """A tower as an engine, for verdicts: its tokens are the patches, and their mean stands for the class token.

    Args:
        tower: runs in fp32.
        name: for the table.
    """

    def __init__(self, tower: VisionTower, *, name: str) -> None:
        self.tower = tower.eval()
        self.name = name

    @property
    def description(self) -> dict[str, str]:
        """Return what the table says of it."""
        return {"name": self.name, "precision": "fp32", "device": "cpu", "version": str(torch.__version__)}

    @property
    def identity(self) -> str:
        """Return nothing: a tower has no hash of its own."""
        return ""

    @torch.no_grad()
    def encode(self, batch: Tensor) -> Tokens:
        """Return the tokens of normalised images (B, C, H, W)."""
        patches = self.tower(batch)
        return Tokens(patches.mean(dim=1), patches[:, :0], patches)

    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Refuse: a tower gives one layer."""
        raise FovealError(f"layers={layers}: a tower gives the tokens of one block")

    def settle(
        self, images: Iterable[Tensor], layers: Sequence[int] | None = None, *, folder: Path | None = None
    ) -> "TowerEngine":
        """Return this engine: it has nothing to decide."""
        return self
