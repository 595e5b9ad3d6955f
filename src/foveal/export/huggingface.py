"""`foveal export huggingface`: a folder for `AutoModel` and `AutoImageProcessor`, compared with the model."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import safetensors
from torch import Tensor

from foveal.backbone.card import Card
from foveal.backbone.convert import write_layout
from foveal.engine.base import Engine
from foveal.engine.foreign import ForeignEngine, open_tower
from foveal.engine.gate import FAST_LIMIT, agreement, shown
from foveal.export.card import VERIFY, ExportCard, ExportError, Port, publish_export, staged
from foveal.export.real_images import real_batches
from foveal.export.source import Source, open_source
from foveal.export.verdict import bytes_of, check_limit, judge
from foveal.images.preprocess import scaled


def export_huggingface(
    model: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    limit: float = FAST_LIMIT,
    accept_licence: str | None = None,
    num_heads: int | None = None,
) -> ExportCard:
    """Write a folder that transformers loads, compared at the size for which the positional embedding is stored.

    At other sizes transformers resizes positions in another way; how far the tokens move at the size that pictures
    are prepared to is measured and noted. Where transformers is not installed the folder is written without a verdict.

    Args:
        model: a model folder, a checkpoint, or a name in `foveal models`.
        out: the folder to write; nothing may be there yet.
        images: real images for the verdict; see `real_batches`.
        limit: least cosine to the model.
        accept_licence: licence that the user accepts, where the terms are not free.
        num_heads: attention heads, where neither the files nor the width tell.

    Raises:
        ExportError: the folder is in use or cannot be written.
        ExportRefused: the export does not agree with the model; it is kept aside.
        FovealError: see `open_source` and `real_batches`.
    """
    check_limit(limit)
    source = open_source(model, out=out, accept_licence=accept_licence, num_heads=num_heads)
    is_run = importlib.util.find_spec("transformers") is not None
    card = source.model.card
    native = at_size(card, card.backbone.image_size)
    batches = real_batches(native, images) if is_run else []
    with staged(Path(out)) as staging:
        lineage = {**card.lineage, "exported_to": "huggingface"}
        written = card.unaccepted().model_copy(update={"lineage": lineage, "sha256": {}})
        try:
            write_layout(staging, source.backbone.state_dict(), written, "huggingface")
        except safetensors.SafetensorError as error:
            raise ExportError(f"{out} cannot be written ({error}); free space or choose another place") from error
        export = source.export_card("huggingface", inputs=[_pixels(card)], outputs=[_tokens(card)])
        if is_run:
            engine = ForeignEngine(open_tower(f"hf:{staging}"))
            export.versions.update(transformers=engine.description["version"].partition(",")[0])
            export = judged(
                export,
                engine,
                source.model.engine,
                batches,
                source=source,
                limit=limit,
                folder=staging,
                depth=card.backbone.depth,
            )
            export.notes.extend(_at_crop_size(engine, source, images))
        else:
            export.notes.append(
                "not compared with the model: transformers is not installed; pip install 'foveal[foreign]', and then "
                f"{VERIFY}"
            )
        return publish_export(staging, Path(out), export)


def at_size(card: Card, image_size: int) -> Card:
    """Return a card whose pictures are cut to another size, with as much around the cut."""
    resize_size = scaled(image_size, card.resize_size / card.crop_size)
    return card.model_copy(update={"crop_size": image_size, "resize_size": resize_size})


def judged(
    card: ExportCard,
    candidate: Engine,
    reference: Engine,
    batches: Sequence[Tensor],
    *,
    source: Source,
    limit: float,
    folder: Path,
    depth: int | None = None,
) -> ExportCard:
    """Return the card of an export with its verdict, and refused where it does not pass; see `judge`."""
    verdict = judge(
        candidate,
        reference,
        batches,
        limit=limit,
        depth=depth,
        size_bytes=bytes_of(folder),
        original_bytes=sum(one.nbytes for one in source.backbone.parameters()),
    )
    return card.model_copy(update={"verdict": verdict.model_dump(mode="json"), "refused": verdict.reason or None})


def _at_crop_size(engine: Engine, source: Source, images: str | Path | None) -> list[str]:
    """Say how near the tokens are at the size that pictures are prepared to, where that is not the native one."""
    card = source.model.card
    if card.crop_size == card.backbone.image_size:
        return []
    batches = real_batches(card, images)
    found, exact = ([one.encode(batch) for batch in batches] for one in (engine, source.model.engine))
    near = agreement(found, exact)
    return [
        f"transformers resizes positions in its own way: at {card.crop_size} pixels, to which pictures are cut, the "
        f"least cosine of class tokens to the model's is {shown(near.cls_min)}; at {card.backbone.image_size} they are "
        "the same"
    ]


def _pixels(card: Card) -> Port:
    return Port(name="pixel_values", dtype="float32", shape=["batch", card.backbone.channels, "height", "width"])


def _tokens(card: Card) -> Port:
    return Port(name="last_hidden_state", dtype="float32", shape=["batch", "tokens", card.backbone.width])
