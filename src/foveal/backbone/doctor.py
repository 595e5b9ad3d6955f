"""What a checkpoint is, whether its numbers make sense, and whether it is the one that was wanted."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from foveal.backbone.formats import Checkpoint, read_checkpoint
from foveal.backbone.licence import Licence
from foveal.backbone.values import evidence, implausible, verdict
from foveal.backbone.variants import VARIANTS, BackboneConfig, backbone_config
from foveal.errors import WeightsError, nearest

_LAYOUTS = {
    "official": "official (the key names of the public DINOv2 files)",
    "huggingface": "Hugging Face (Dinov2Model or Dinov2WithRegistersModel)",
    "timm": "timm",
    "foveal": "model folder",
}
_EXPECTED = re.compile(r"(?:dinov2_)?(?P<variant>vit_?[a-z]+)(?P<patch>\d+)?(?P<registers>_reg(?P<count>\d*))?")


@dataclass(frozen=True)
class Diagnosis:
    """What was found: `rows` of (property, value), and `warnings` about what loads but should be looked at."""

    rows: list[tuple[str, str]]
    warnings: list[str]


def diagnose(path: str | Path, *, expect: str | None = None, num_heads: int | None = None) -> Diagnosis:
    """Read a checkpoint strictly and say what it is.

    Args:
        path: a file or folder; see `read_checkpoint`.
        expect: the network it should be, e.g. "vits14" or "dinov2_vitb14_reg"; None takes any.
        num_heads: attention heads, where neither the files nor the width tell.

    Raises:
        WeightsError: it cannot be loaded, or is not what was expected; the message says why and what to do.
    """
    checkpoint = read_checkpoint(path, num_heads=num_heads)
    card, config = checkpoint.card, checkpoint.card.backbone
    if expect is not None:
        check_expected(config, expect, where=str(path))
    signs = evidence(checkpoint.tensors, depth=config.depth)
    num_parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.tensors.values())
    largest, where = max((float(tensor.abs().max()), name) for name, tensor in checkpoint.tensors.items())
    rows = [
        ("network", describe(config)),
        ("format", _LAYOUTS[checkpoint.layout] + _taken_from(checkpoint)),
        ("blocks", f"{config.depth} of width {config.width}, {config.num_heads} heads, {config.ffn}"),
        ("patch size", str(config.patch_size)),
        ("image size", f"{config.image_size} ({config.grid_size} x {config.grid_size} patches)"),
        ("channels", str(config.channels)),
        ("registers", str(config.num_registers)),
        ("parameters", f"{num_parameters:,}"),
        ("dtype", ", ".join(f"{name} ({count} tensors)" for name, count in dtypes.most_common())),
        ("values", f"finite; the largest is {largest:.3g}, in {where}"),
        ("weights", verdict(signs)),
        ("integrity", checkpoint.integrity),
        ("licence", _licence(card.licence)),
    ]
    rows += [(f"sha256 of {name}", value) for name, value in card.sha256.items()]
    if checkpoint.ssl_heads:
        rows.append(("heads", f"of pretraining, {len(checkpoint.ssl_heads)} tensors"))
    if checkpoint.left_out:
        rows.append(("not read", ", ".join(f"{name} ({count} tensors)" for name, count in checkpoint.left_out.items())))
    rows += [("assumed", text) for text in checkpoint.assumed]
    return Diagnosis(rows, _warnings(checkpoint))


def describe(config: BackboneConfig) -> str:
    """Return a network in a few words, e.g. "vits, patch 14, 4 registers"."""
    return f"{config.variant}, patch {config.patch_size}, {config.num_registers or 'no'} registers"


def check_expected(config: BackboneConfig, expect: str, *, where: str) -> None:
    """Compare a network with the name of one, such as "vits14_reg4".

    Raises:
        WeightsError: the name is not known, or it is another network; the message lists the differences.
    """
    match = _EXPECTED.fullmatch(expect)
    if not match or match["variant"] not in VARIANTS:
        stem = match["variant"] if match else expect
        raise WeightsError(
            f"'{expect}' names no network{nearest(stem, VARIANTS)}; give a variant ({', '.join(VARIANTS)}), its patch "
            "size, and _reg4 where it has registers, as in vits14 or vitb14_reg4"
        )
    registers = int(match["count"] or 4) if match["registers"] else 0
    wanted = backbone_config(
        match["variant"], patch_size=(patch := int(match["patch"] or 14)), image_size=patch, num_registers=registers
    )
    fields = ("width", "depth", "num_heads", "ffn", "patch_size", "num_registers")
    differing = [
        f"{name} is {getattr(config, name)} instead of {getattr(wanted, name)}"
        for name in fields
        if getattr(config, name) != getattr(wanted, name)
    ]
    if differing:
        raise WeightsError(
            f"{where} is ({describe(config)}), not ({describe(wanted)}): {'; '.join(differing)}; "
            "take the other file, or ask for what this one is"
        )


def _taken_from(checkpoint: Checkpoint) -> str:
    prefix = checkpoint.card.lineage.get("taken_from")
    return f", found under {prefix}" if prefix and checkpoint.layout != "foveal" else ""


def _licence(licence: Licence) -> str:
    return licence.name if licence.name == licence.terms else f"{licence.name} ({licence.terms} terms)"


def _warnings(checkpoint: Checkpoint) -> list[str]:
    found = [f"implausible: {text}; the file may be damaged" for text in implausible(checkpoint.tensors)[:5]]
    if "no checksum" in checkpoint.integrity:
        found.append("nothing in this format shows damage; compare the sha256 with the publisher's")
    return found
