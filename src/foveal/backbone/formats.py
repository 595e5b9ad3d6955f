"""Checkpoints of every kind, read to the bit: the one door for weights that are not ours.

Official hub files and training checkpoints, Hugging Face and timm folders or files, model folders. What a file is shows
in the names and shapes of its tensors, never in its own name. Loading is always strict: every tensor of the backbone
finds its place and every place is filled, or the error lists what does not fit. `convert.py` writes the same formats.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from foveal.backbone import huggingface, official, timm
from foveal.backbone.containers import Container, read_container
from foveal.backbone.infer import build, infer_config
from foveal.backbone.provenance import Beside, make_card, read_beside, recognised
from foveal.backbone.recognise import explain_names
from foveal.backbone.selection import select_backbone
from foveal.backbone.values import check_values, implausible
from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import CARD, HEADS, WEIGHTS, Card, check_fits, load_tensors, load_weights
from foveal.errors import WeightsError
from foveal.files import sha256_of

Format = Literal["official", "huggingface", "timm", "foveal"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A backbone as it was stored.

    Attributes:
        tensors: under our names, each of the type it has on disk.
        card: its description; `backbone` is the configuration, `lineage` says where it comes from, `sha256` holds the
            hashes of the files it was read from.
        layout: the format of those files.
        ssl_heads: heads of pretraining that lay beside it; may be empty.
        left_out: other tensors of the file, by first name, with their number.
        integrity: how it was checked that the files are whole.
        assumed: what the files did not say and was filled in, in words.
    """

    tensors: dict[str, Tensor]
    card: Card
    layout: Format
    ssl_heads: dict[str, Tensor]
    left_out: dict[str, int]
    integrity: str
    assumed: list[str]


def load_checkpoint(
    path: str | Path, *, num_heads: int | None = None, dtype: torch.dtype | None = torch.float32
) -> tuple[VisionTransformer, Card]:
    """Load a backbone from a checkpoint of any known kind, in evaluation mode on the CPU, with its card.

    Args:
        path: a file of weights or a folder that holds them; see `read_checkpoint`.
        num_heads: attention heads, where neither the files nor the width tell.
        dtype: of the parameters; None keeps the type of each tensor on disk.

    Raises:
        WeightsError: see `read_checkpoint`.

    Example:
        >>> backbone, card = load_checkpoint("dinov2_vits14_reg4_pretrain.pth")  # doctest: +SKIP
        >>> card.backbone.num_registers  # doctest: +SKIP
        4
    """
    checkpoint = read_checkpoint(path, num_heads=num_heads)
    return build(checkpoint.tensors, checkpoint.card.backbone, dtype=dtype), checkpoint.card


def read_checkpoint(path: str | Path, *, num_heads: int | None = None) -> Checkpoint:
    """Read a checkpoint of any known kind without changing a bit of it.

    Args:
        path: an official `.pth` (flat or chunked, from the hub or from training), a Hugging Face or timm
            `.safetensors`, `.bin` or folder, or a model folder.
        num_heads: attention heads, where neither the files nor the width tell.

    Raises:
        WeightsError: nothing there, damaged, cut short, a program, another architecture, several backbones, NaN,
            tensors that do not fit each other, or a config.json that describes another network; the message says which
            and what to do.
    """
    path = Path(path)
    if path.name == WEIGHTS and (path.parent / CARD).is_file():
        path = path.parent
    if (path / CARD).is_file():
        return _read_model_folder(path, num_heads=num_heads)
    container = read_container(path)
    selection = select_backbone(container.tensors, where=str(path))
    checked = {**selection.backbone, **selection.ssl_heads}
    check_values(checked, num_bytes=container.num_bytes, where=str(path))
    try:
        layout, tensors, assumed = _to_ours(selection.backbone)
        beside = _beside(path, container, layout)
        config = _config_of(tensors, beside, num_heads=num_heads)
        check_fits(tensors, config, where=str(path))
        if beside.network:
            huggingface.check_config(beside.network, config)
        card, filled_in = make_card(path, layout, config, beside, container, selection)
    except WeightsError as error:
        raise error if str(path) in str(error) else WeightsError(f"{path}: {error}") from error
    for text in implausible(tensors):
        logger.warning("%s: %s; the file may be damaged", path, text)
    if num_heads is None and beside.num_heads() is None and _heads_are_a_guess(card.backbone):
        guess = f"attention heads: {card.backbone.num_heads}, from the width (--num-heads says otherwise)"
        logger.warning("%s: assumed %s; if that is wrong, so are the features", path, guess)
        filled_in = [guess, *filled_in]
    assumed += filled_in
    if assumed:
        card = card.model_copy(update={"lineage": {**card.lineage, "assumed": assumed}})
    return Checkpoint(
        tensors, recognised(card), layout, selection.ssl_heads, selection.left_out, container.integrity, assumed
    )


def _read_model_folder(folder: Path, *, num_heads: int | None) -> Checkpoint:
    tensors, card = load_weights(folder)
    if num_heads not in (None, card.backbone.num_heads):
        raise WeightsError(
            f"num_heads={num_heads}, and the card of {folder} says {card.backbone.num_heads}; leave --num-heads out"
        )
    check_values(tensors, num_bytes=(folder / WEIGHTS).stat().st_size, where=str(folder))
    heads = {}
    if (path := folder / HEADS).is_file():
        if (seen := sha256_of(path)) != card.sha256.get(HEADS):
            raise WeightsError(
                f"{path} is damaged: its sha256 is {seen}, the card says {card.sha256.get(HEADS)}; copy or download it "
                "again"
            )
        heads = load_tensors(path)
    return Checkpoint(tensors, card, "foveal", heads, {}, "sha256 as in the card", [])


def _heads_are_a_guess(config: BackboneConfig) -> bool:
    """Whether another number of heads is likely: no network of the table, or heads that are not 64 channels wide."""
    return config.variant == "custom" or config.width != 64 * config.num_heads


def _to_ours(backbone: Mapping[str, Tensor]) -> tuple[Format, dict[str, Tensor], list[str]]:
    """Return the layout that the names show, the tensors under our names, and what had to be filled in."""
    names = set(backbone)
    if huggingface.matches(names):
        tensors = huggingface.from_huggingface(backbone)
        if "mask_token" in tensors or "cls_token" not in tensors:
            return "huggingface", tensors, []
        tensors["mask_token"] = torch.zeros_like(tensors["cls_token"][0])
        return "huggingface", tensors, ["mask token: zeros, the file has none"]
    if official.matches(names):
        return "official", official.from_official(backbone), []
    if timm.matches(names):
        return "timm", timm.from_timm(backbone), ["mask token: zeros, timm has none"]
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.items()}
    raise WeightsError(f"this is {explain_names(shapes)}")


def _beside(path: Path, container: Container, layout: Format) -> Beside:
    """Read what lies beside the weights; beside an official file nothing belongs to it."""
    beside = read_beside(path, container)
    if layout == "official":
        return Beside({}, {}, {}, None, beside.card)
    return beside


def _config_of(tensors: Mapping[str, Tensor], beside: Beside, *, num_heads: int | None) -> BackboneConfig:
    """Infer the configuration; the heads come from the files, else from the caller, else from the width."""
    written = beside.num_heads()
    if None not in (num_heads, written) and num_heads != written:
        raise WeightsError(f"num_heads={num_heads} was given, and the files say {written}; leave it out")
    config = infer_config(tensors, num_heads=num_heads or written)
    if beside.card is None:
        return config
    # What no shape shows: how the positional embedding is resized, and the settings of further training.
    kept = ("pos_embed_resize", "layerscale_init", "drop_path_rate")
    return config.model_copy(update={name: getattr(beside.card.backbone, name) for name in kept})
