"""From a checkpoint to the model folder of its networks."""

from pathlib import Path
from typing import Any

from foveal.backbone.card import Card
from foveal.backbone.weights import check_fits, save_model
from foveal.errors import CheckpointError, nearest
from foveal.pretrain.checkpoints.reader import Checkpoint
from foveal.pretrain.run import MODEL
from foveal.pretrain.start.lora import merged_tensors
from foveal.pretrain.start.settings import LoRA

_BACKBONE = "backbone."


def described_model(card: Card, *, stem: str, lora: LoRA | None = None) -> dict[str, Any]:
    """Return what a checkpoint's state says of the model that its file stem `stem` holds; `export_model` reads it.

    With `lora` the tensors hold low-rank changes, which are merged into the weights of the model folder.
    """
    found = {"stem": stem, "card": card.model_dump(mode="json")}
    return found | ({"low_rank_scale": lora.alpha / lora.rank} if lora else {})


def export_model(checkpoint: Checkpoint, folder: Path, *, model: str = MODEL) -> Card:
    """Write the model folder of a checkpoint: a backbone with its card, and its self-supervised heads if it has some.

    Args:
        checkpoint: an intact one.
        folder: where; a model folder that is there is replaced.
        model: which of the models in the checkpoint's state: `described_model` by place in the run folder.

    Raises:
        CheckpointError: there is no such model, or its tensors cannot be read.
        WeightsError: the folder is something else or cannot be written, or the tensors are not those of the card.
    """
    models = checkpoint.state()["models"]
    if model not in models:
        raise CheckpointError(f"{checkpoint.path} holds no {model}{nearest(model, models)}; it has {', '.join(models)}")
    card = Card.model_validate(models[model]["card"])
    tensors = checkpoint.read(models[model]["stem"])
    if scale := models[model].get("low_rank_scale"):
        tensors = merged_tensors(tensors, scale=scale)
    weights = {name.removeprefix(_BACKBONE): value for name, value in tensors.items() if name.startswith(_BACKBONE)}
    if ":" not in card.backbone.variant:  # else a network of another library, which knows its own names
        check_fits(weights, card.backbone, where=str(checkpoint.path))
    heads = {name: value for name, value in tensors.items() if name.partition(".")[0].endswith("_head")}
    return save_model(folder, weights, card, heads=heads or None)
