"""Model folders: `model.safetensors` beside its card `model.json`, and the heads of a pretraining run."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import VisionTransformer
from foveal.errors import WeightsError
from foveal.files import publish, sha256_of

WEIGHTS, CARD, HEADS = "model.safetensors", "model.json", "ssl_heads.safetensors"


class Card(BaseModel):
    """What a model folder says of itself.

    `mean` and `std` normalise channels given in 0..1. `crop_size` is the image size in pixels that features are
    extracted at by default; `resize_size` the length of the shorter side before that crop. `lineage` tells where the
    weights come from. `sha256` is that of each file beside the card.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: int = 1
    name: str
    backbone: BackboneConfig
    mean: list[float] = [0.485, 0.456, 0.406]
    std: list[float] = [0.229, 0.224, 0.225]
    crop_size: int = 224
    resize_size: int = 256
    licence: str = "unknown"
    lineage: dict[str, object] = {}
    sha256: dict[str, str] = {}


def save_model(
    folder: str | Path, backbone: VisionTransformer, card: Card, *, heads: Mapping[str, Tensor] | None = None
) -> Card:
    """Write a model folder in one move: a temporary folder, fsynced, hashed, renamed over an earlier model folder.

    Args:
        folder: where; an existing model folder is replaced, anything else is left alone.
        backbone: the weights.
        card: its description; `sha256` is filled in here.
        heads: self-supervised heads, written to `ssl_heads.safetensors`.

    Raises:
        WeightsError: the folder exists and is not a model folder, or it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / CARD).is_file():
        raise WeightsError(f"{folder} exists and is not a model folder; choose another place or remove it")
    staging = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        _save_tensors(backbone.state_dict(), staging / WEIGHTS)
        if heads is not None:
            _save_tensors(heads, staging / HEADS)
        hashes = {path.name: sha256_of(path) for path in sorted(staging.iterdir())}
        card = card.model_copy(update={"sha256": hashes})
        (staging / CARD).write_text(card.model_dump_json(indent=2) + "\n")
        publish(staging, folder)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise WeightsError(
            f"cannot write the model folder {folder}: {error}; free space or choose another place"
        ) from error
    return card


def load_model(folder: str | Path, *, verify: bool = True) -> tuple[VisionTransformer, Card]:
    """Read a model folder back: the network in float32 on the CPU, in evaluation mode, and its card.

    Args:
        folder: a model folder.
        verify: compare the sha256 of the weights with the card's.

    Raises:
        WeightsError: no model folder, a damaged file, or weights that do not fit the card; the message says which.
    """
    tensors, card = load_weights(folder, verify=verify)
    backbone = VisionTransformer(card.backbone)
    backbone.load_state_dict(tensors)
    return backbone.eval(), card


def load_weights(folder: str | Path, *, verify: bool = True) -> tuple[dict[str, Tensor], Card]:
    """Read the tensors of a model folder, of the types they have on disk, and its card; see `load_model`."""
    folder = Path(folder)
    card = read_card(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise WeightsError(f"{folder} has a card but no {WEIGHTS}; copy the whole model folder")
    if verify and (seen := sha256_of(path)) != card.sha256.get(WEIGHTS):
        raise WeightsError(
            f"{path} is damaged: its sha256 is {seen}, the card says {card.sha256.get(WEIGHTS)}; copy it again"
        )
    return check_fits(load_tensors(path), card.backbone, where=str(path)), card


def read_card(folder: Path) -> Card:
    """Read the card of a model folder; WeightsError when there is none or it cannot be understood."""
    path = folder / CARD
    if not path.is_file():
        near = folder / "model"
        hint = f"; did you mean {near}?" if (near / CARD).is_file() else "; give the folder that holds model.json"
        raise WeightsError(f"{folder} is not a model folder: it has no {CARD}{hint}")
    try:
        return Card.model_validate(json.loads(path.read_text()))
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be understood: {error}") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file; WeightsError when it is missing or damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def check_fits(tensors: dict[str, Tensor], config: BackboneConfig, *, where: str) -> dict[str, Tensor]:
    """Return `tensors` when they are exactly those of the network; else WeightsError lists the differences."""
    with torch.device("meta"):
        wanted = VisionTransformer(config).state_dict()
    return check_tensors(tensors, wanted, where=where)


def check_tensors(found: dict[str, Tensor], wanted: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """Return `found` when its names and shapes are those of `wanted`; else WeightsError names the differences."""
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in wanted]
    problems += [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(f"{where} does not fit this network: {'; '.join(problems[:5])}{more}")
    return found


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
