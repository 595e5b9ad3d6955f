"""Writing a checkpoint in another format: whole or not at all, to the bit, and saying what the format cannot hold."""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import get_args

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from foveal.backbone import huggingface, timm
from foveal.backbone.formats import Checkpoint, Format, read_checkpoint
from foveal.backbone.infer import build, heads_of_width
from foveal.backbone.provenance import CONFIG, EMBEDDED_CARD, PREPROCESSOR
from foveal.backbone.weights import WEIGHTS, Card, save_model
from foveal.errors import WeightsError, nearest
from foveal.files import publish, sync

_FILE_SUFFIXES = (".pth", ".pt", ".bin")


def convert(
    source: str | Path, out: str | Path, *, to: str, num_heads: int | None = None
) -> tuple[Checkpoint, list[str]]:
    """Read a checkpoint of any known kind and write it as another.

    Official: a `.pth` with a plain state dict. Hugging Face: a folder for `AutoModel` and `AutoImageProcessor`.
    timm: a folder for `timm.create_model("local-dir:OUT", pretrained=True)`. foveal: a model folder. Each tensor keeps
    its type.

    Args:
        source: see `read_checkpoint`.
        out: the file or folder to write; nothing may be there yet.
        to: "official", "huggingface", "timm" or "foveal".
        num_heads: attention heads, where neither the files nor the width tell.

    Returns:
        The checkpoint as it was read, with the card of what was written, and what the format could not hold, in words.

    Raises:
        WeightsError: `source` cannot be read, `to` is not known, or `out` exists, has the wrong kind of name or cannot
            be written.
    """
    out = Path(out)
    _check_target(out, to)
    checkpoint = read_checkpoint(source, num_heads=num_heads)
    lost = losses(checkpoint, to)
    card = checkpoint.card
    lineage = card.lineage
    if checkpoint.layout == "foveal":
        lineage = {"format": "foveal", "source": Path(source).name, "sha256": card.sha256, "parent": card.lineage}
    lineage = {**lineage, "converted_to": to, "lost": lost}
    card = card.unaccepted().model_copy(update={"lineage": lineage, "sha256": {}})
    if to == "foveal":
        network = build(checkpoint.tensors, card.backbone, dtype=None)
        card = save_model(out, network, card, heads=checkpoint.ssl_heads or None)
    elif to == "official":
        _write_file(out, checkpoint.tensors)
    else:
        _write_folder(out, checkpoint.tensors, card, to)
    return replace(checkpoint, card=card), lost


def losses(checkpoint: Checkpoint, to: str) -> list[str]:
    """Say in words what the format `to` cannot hold of a checkpoint."""
    config, lost = checkpoint.card.backbone, []
    if to == "timm":
        lost += timm.losses(checkpoint.tensors)
    if to != "foveal" and checkpoint.ssl_heads:
        lost.append(f"heads of pretraining ({len(checkpoint.ssl_heads)} tensors)")
    if to == "official":
        lost.append("the card: name, licence, normalisation and lineage (a .pth holds tensors only)")
        if config.num_heads != heads_of_width(config.width):
            lost.append(f"num_heads={config.num_heads} (give --num-heads {config.num_heads} to read the file again)")
        if config.pos_embed_resize is not None:
            lost.append(f"pos_embed_resize={config.pos_embed_resize}")
    if checkpoint.left_out:
        lost.append(
            "what is not the backbone: " + ", ".join(f"{n} ({c} tensors)" for n, c in checkpoint.left_out.items())
        )
    return lost


def _check_target(out: Path, to: str) -> None:
    if to not in get_args(Format):
        raise WeightsError(
            f"--to {to} is not known{nearest(to, get_args(Format))}; known: {', '.join(get_args(Format))}"
        )
    if out.exists():
        raise WeightsError(f"{out} exists; choose another place, or remove it first")
    is_file_name = out.suffix in (*_FILE_SUFFIXES, ".safetensors")
    if to == "official" and out.suffix not in _FILE_SUFFIXES:
        raise WeightsError(f"an official checkpoint is one file; give {out.name} the ending .pth")
    if to != "official" and is_file_name:
        raise WeightsError(f"--to {to} writes a folder; give it a name without {out.suffix}")


def _write_file(out: Path, tensors: Mapping[str, Tensor]) -> None:
    staging = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(staging, "wb") as file:
            torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        sync(staging)
        staging.rename(out)
        sync(out.parent)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{out} cannot be written ({error}); free space or choose another place") from error
    finally:
        with suppress(OSError):
            staging.unlink()


def write_layout(folder: Path, tensors: Mapping[str, Tensor], card: Card, to: str) -> None:
    """Write weights, configuration and preprocessing into a folder that is there, as Hugging Face or timm read them.

    Args:
        folder: to write into.
        tensors: of the backbone, under our names; each keeps its type.
        card: of the model; it goes along in the metadata of the weights.
        to: "huggingface" or "timm".

    Raises:
        OSError, SafetensorError: the disk refuses it.
    """
    sizes = {"mean": card.mean, "std": card.std, "crop_size": card.crop_size, "resize_size": card.resize_size}
    if to == "timm":
        found = timm.to_timm(tensors)
        settings = {CONFIG: timm.config_json(card.backbone, licence=card.licence.name, **sizes)}  # type: ignore[arg-type]
    else:
        found = huggingface.to_huggingface(tensors)
        settings = {
            CONFIG: huggingface.config_json(card.backbone, dtype=tensors["patch_embed.proj.weight"].dtype),
            PREPROCESSOR: huggingface.preprocessor_json(**sizes),  # type: ignore[arg-type]
        }
    metadata = {"format": "pt", EMBEDDED_CARD: card.model_dump_json()}
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / WEIGHTS, metadata=metadata)
    for name, values in settings.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")


def _write_folder(out: Path, tensors: Mapping[str, Tensor], card: Card, to: str) -> None:
    staging = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        write_layout(staging, tensors, card, to)
        publish(staging, out)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{out} cannot be written ({error}); free space or choose another place") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
