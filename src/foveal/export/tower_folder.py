"""`foveal export tower`: a folder that LLaVA of transformers takes as its vision tower, compared with the model."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from foveal.backbone.huggingface import preprocessor_json
from foveal.backbone.licence import licence_named
from foveal.backbone.vit import Tokens
from foveal.engine.gate import FAST_LIMIT
from foveal.engine.tower import imported
from foveal.errors import FovealError
from foveal.export.card import ExportCard, ExportError, Port, publish_export, staged
from foveal.export.huggingface import at_size, judged
from foveal.export.real_images import real_batches
from foveal.export.source import open_source
from foveal.export.verdict import check_limit
from foveal.export.vision_tower import VisionTower

IMPORT = "import foveal.export.tower"


class StateEngine:
    """Runs what gives a class token and patches (B, 1 + P, D) of pictures, for the verdict on a tower."""

    def __init__(self, name: str, identity: str, states: Callable[[Tensor], Tensor]) -> None:
        self.description = {"name": name, "precision": "fp32", "device": "cpu", "version": torch.__version__}
        self.identity, self._states = identity, states

    @torch.no_grad()
    def encode(self, batch: Tensor) -> Tokens:
        """Return the tokens of the penultimate state."""
        found = self._states(batch)
        return Tokens(found[:, 0], found[:, :0], found[:, 1:])

    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Refuse: a tower is compared in its penultimate state only."""
        raise FovealError("a vision tower gives one state; export huggingface for those of other blocks")

    def settle(
        self, images: Iterable[Tensor], layers: Sequence[int] | None = None, *, folder: Path | None = None
    ) -> "StateEngine":
        """Return this engine: it has nothing to decide."""
        return self


def export_tower(
    model: str | Path,
    out: str | Path,
    *,
    clip: str | Path | None = None,
    clip_licence: str = "unknown",
    image_size: int | None = None,
    images: str | Path | None = None,
    limit: float = FAST_LIMIT,
    accept_licence: str | None = None,
    num_heads: int | None = None,
) -> ExportCard:
    """Write a vision tower for transformers; whoever opens it imports `foveal.export.tower` first.

    Args:
        model: a model folder, a checkpoint, or a name in `foveal models`.
        out: the folder to write; nothing may be there yet.
        clip: folder or name of a CLIP or SigLIP model whose tokens stand beside; see `VisionTower`.
        clip_licence: under which its weights come.
        image_size: see `VisionTower`.
        images: real images for the verdict; see `real_batches`.
        limit: least cosine to the model.
        accept_licence: licence that the user accepts, where the terms are not free.
        num_heads: attention heads, where neither the files nor the width tell.

    Raises:
        ExportError: the folder is in use or cannot be written.
        ExportRefused: what was written does not agree with the model; it is kept aside.
        FovealError: transformers is missing; see also `VisionTower`, `open_source` and `real_batches`.
    """
    check_limit(limit)
    transformers = imported("transformers")
    from foveal.export.tower import tower_model

    others = [] if clip is None else [licence_named(clip_licence)]
    source = open_source(model, out=out, others=others, accept_licence=accept_licence, num_heads=num_heads)
    tower = VisionTower(source.model, clip=clip, image_size=image_size)
    card = at_size(source.model.card, tower.image_size)
    batches = real_batches(card, images)
    sizes = {"crop_size": card.crop_size, "resize_size": card.resize_size}
    with staged(Path(out)) as staging:
        try:
            tower_model(tower).save_pretrained(staging)
        except safetensors.SafetensorError as error:
            raise ExportError(f"{out} cannot be written ({error}); free space or choose another place") from error
        (staging / "preprocessor_config.json").write_text(
            json.dumps(preprocessor_json(mean=card.mean, std=card.std, **sizes), indent=2) + "\n"
        )
        export = source.export_card("tower", inputs=[_pixels(card.backbone.channels)], outputs=[_tokens(tower)])
        preprocessing = export.preprocessing.model_copy(update=sizes)
        export = export.model_copy(update={"preprocessing": preprocessing})
        export.versions.update(transformers=transformers.__version__)
        export.notes.append(f"python needs the line `{IMPORT}` before AutoModel or LLaVA opens this folder")
        again = transformers.AutoModel.from_pretrained(staging).eval()
        identity = source.model.identity
        candidate = StateEngine("transformers", identity, lambda batch: again(batch).hidden_states[-2])
        reference = StateEngine("torch", identity, lambda batch: tower.towers.states(batch)[-2])
        export = judged(export, candidate, reference, batches, source=source, limit=limit, folder=staging)
        return publish_export(staging, Path(out), export)


def _pixels(channels: int) -> Port:
    return Port(name="pixel_values", dtype="float32", shape=["batch", channels, "height", "width"])


def _tokens(tower: VisionTower) -> Port:
    return Port(name="hidden_states", dtype="float32", shape=["batch", "1 + patches", tower.hidden_size])
