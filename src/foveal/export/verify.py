"""`foveal export verify`: the verdict on an export that is there already, by whatever runs it on this computer."""

from collections.abc import Sequence
from pathlib import Path

from foveal.engine.base import Engine
from foveal.engine.foreign import ForeignEngine, open_tower
from foveal.engine.gate import FAST_LIMIT
from foveal.export.card import ExportCard, ExportError, ExportRefused, read_export
from foveal.export.graph_engine import GraphEngine
from foveal.export.huggingface import at_size, judged
from foveal.export.judging import Trial
from foveal.export.onnx_engine import OnnxEngine
from foveal.export.openvino_ir import IrEngine
from foveal.export.plan_engine import PlanEngine
from foveal.export.real_images import BATCH_SIZE, real_batches
from foveal.export.source import Source, open_original
from foveal.export.tensorrt import PLAN, SCRIPT
from foveal.export.triton import GRAPHS
from foveal.export.verdict import check_limit


def verify_export(
    folder: str | Path,
    model: str | Path,
    *,
    heads: Sequence[str] = (),
    images: str | Path | None = None,
    limit: float = FAST_LIMIT,
    num_heads: int | None = None,
) -> ExportCard:
    """Compare an export with the model that it was made from, on real images; nothing is written.

    Plans of TensorRT are run, which needs their GPU; the verdict at their export is that of the graph.

    Args:
        folder: of the export.
        model: that it was made from.
        heads: of the export that are compared too; see `open_original`.
        images: real images; see `real_batches`.
        limit: least cosine to the model.
        num_heads: attention heads, where neither the files nor the width tell.

    Returns:
        The card of the export with the new verdict; its notes say what was not compared.

    Raises:
        ExportError: no export, a damaged one, one of another model, a plan that was not built yet, or a package or GPU
            that is missing.
        ExportRefused: it does not agree with the model.
        FovealError: see `open_original` and `real_batches`.
    """
    check_limit(limit)
    folder = Path(folder)
    card = read_export(folder)
    candidate = open_export(folder, card)
    source = open_original(model, heads=heads, num_heads=num_heads)
    notes = _checked(folder, card, source)
    found = _judged(folder, card, candidate, source, images, limit).model_copy(update={"notes": notes})
    if found.refused is not None:
        raise ExportRefused(f"{folder} does not agree with {model}: {found.refused}", found)
    return found


def open_export(folder: Path, card: ExportCard) -> Engine:
    """Return the engine that runs an export: of a repository, that of its backbone.

    Raises:
        ExportError: a vision tower, a plan that is still to be built, or a package or GPU that is missing.
    """
    if card.format == "tower":
        raise ExportError(f"{folder} is a vision tower, which is compared when it is written; export it again")
    if card.format == "huggingface":
        return ForeignEngine(open_tower(f"hf:{folder}"))
    if card.format == "openvino":
        return IrEngine(folder)
    graphs = folder / GRAPHS if card.format == "triton" else folder
    if not (graphs / SCRIPT).is_file():
        return OnnxEngine(graphs)
    if not (graphs / PLAN).is_file():
        raise ExportError(f"{graphs} holds no {PLAN} yet; run {graphs / SCRIPT} on the GPU that will serve")
    return PlanEngine(graphs / PLAN, card)


def _checked(folder: Path, card: ExportCard, source: Source) -> list[str]:
    """Refuse another model or another head than the export holds; return which heads are not compared."""
    if card.identity != source.model.identity:
        raise ExportError(
            f"{folder} was made from {card.name} ({card.identity[:12]}), and this model is {source.model.card.name} "
            f"({source.model.identity[:12]}); give the one that it was made from"
        )
    inside = {head.name: head.identity for head in card.heads}
    for name, head in source.heads.items():
        if inside.get(name) != head.identity:
            raise ExportError(
                f"{folder} holds no such head {name}; it has {', '.join(inside) or 'none'}; give its folder as "
                "--head NAME=FOLDER, or leave it out"
            )
    return [f"the head {name} was not compared; give it as --head" for name in inside if name not in source.heads]


def _judged(
    folder: Path, card: ExportCard, candidate: Engine, source: Source, images: str | Path | None, limit: float
) -> ExportCard:
    original = source.model.card
    if isinstance(candidate, GraphEngine):
        batch_size = min(BATCH_SIZE, candidate.most[0]) if isinstance(candidate, PlanEngine) else BATCH_SIZE
        trial = Trial(source, real_batches(original, images, batch_size=batch_size), limit)
        weighed = candidate.path if isinstance(candidate, PlanEngine) else candidate.path.parent
        return trial.judged(card, candidate, folder=weighed)
    batches = real_batches(at_size(original, original.backbone.image_size), images)
    return judged(
        card,
        candidate,
        source.model.engine,
        batches,
        source=source,
        limit=limit,
        folder=folder,
        depth=original.backbone.depth,
    )
