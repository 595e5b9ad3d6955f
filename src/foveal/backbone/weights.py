"""Model folders: `model.safetensors` beside its card `model.json`, and the heads of a pretraining run."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foveal.backbone.card import CARD, Card, card_text, read_card
from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import VisionTransformer
from foveal.errors import WeightsError
from foveal.files import publish, sha256_of

WEIGHTS, HEADS = "model.safetensors", "ssl_heads.safetensors"


def save_model(
    folder: str | Path,
    backbone: nn.Module | Mapping[str, Tensor],
    card: Card,
    *,
    heads: Mapping[str, Tensor] | None = None,
) -> Card:
    """Write a model folder in one move: a temporary folder, fsynced, hashed, renamed over an earlier model folder.

    Args:
        folder: where; an existing model folder is replaced, anything else is left alone.
        backbone: the weights, as a network or its state.
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
        _save_tensors(backbone.state_dict() if isinstance(backbone, nn.Module) else backbone, staging / WEIGHTS)
        if heads is not None:
            _save_tensors(heads, staging / HEADS)
        hashes = {path.name: sha256_of(path) for path in sorted(staging.iterdir())}
        card = card.model_copy(update={"sha256": hashes})
        (staging / CARD).write_text(card_text(card))
        publish(staging, folder)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"cannot write the model folder {folder}: {error}; free space or choose another place"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
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
    card = read_card(Path(folder))
    path = weights_file(folder, verify=verify)
    if ":" in card.backbone.variant:
        raise WeightsError(f"{folder} holds {card.name}, a network of another library; only foveal.load opens it")
    return check_fits(load_tensors(path), card.backbone, where=str(path)), card


def weights_file(folder: str | Path, *, verify: bool = True) -> Path:
    """Return the file of the weights in a model folder; WeightsError where it is missing or damaged."""
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise WeightsError(f"{folder} has a card but no {WEIGHTS}; copy the whole model folder")
    if verify:
        _check_hash(path, wanted=read_card(Path(folder)).sha256.get(WEIGHTS))
    return path


def load_heads(folder: str | Path, *, verify: bool = True) -> dict[str, Tensor]:
    """Read the self-supervised heads of a model folder, under names such as dino_head.mlp.0.weight.

    Raises:
        WeightsError: no model folder, one without heads, or a damaged file; the message says which.
    """
    folder = Path(folder)
    card, path = read_card(folder), folder / HEADS
    if not path.is_file():
        raise WeightsError(f"{folder} has no {HEADS}, which only pretraining writes; public checkpoints have none")
    if verify:
        _check_hash(path, wanted=card.sha256.get(HEADS))
    return load_tensors(path)


def _check_hash(path: Path, *, wanted: str | None) -> None:
    if wanted is None:
        raise WeightsError(
            f"{path.parent / CARD} has no sha256 for {path.name}, so it cannot be told whether it is whole; "
            "copy the model folder again with its own card"
        )
    if (seen := sha256_of(path)) != wanted:
        raise WeightsError(
            f"{path} is damaged: its sha256 is {seen}, the card says {wanted}; copy or download it again"
        )


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file; WeightsError when it is missing or damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); copy or download it again") from error


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
