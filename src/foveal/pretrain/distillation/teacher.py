"""The frozen teacher of a distillation: any backbone, seen on the student's patch grid, and its heads if any."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.backbone.card import CARD, Card, read_card
from foveal.backbone.source import open_backbone
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import HEADS, check_tensors, load_heads
from foveal.engine.base import Engine, Precision
from foveal.engine.foreign import ForeignEngine, holds_foreign, is_foreign, load_foreign, load_foreign_folder
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import RecipeError, WeightsError
from foveal.objectives.heads import DINOHead
from foveal.pretrain.start.weights import model_path

Grid = tuple[int, int]


def open_teacher(source: str, *, device: torch.device, precision: Precision = "fp32") -> tuple[Engine, Card]:
    """Return a frozen backbone behind the one call `encode`, and its card.

    Args:
        source: a model folder, a checkpoint in any known format, a known name or url, or a model of another library
            ("timm:NAME", "hf:NAME", "open_clip:NAME/PRETRAINED").
        device: where it runs.
        precision: of its forward pass.

    Raises:
        RecipeError: it does not fit into the memory of the device.
        FovealError: it cannot be had, is damaged or unknown.
    """
    _check_memory(source, device=device)
    try:
        if is_foreign(source):
            return load_foreign(source, precision=precision, device=device)
        if holds_foreign(source):
            return load_foreign_folder(source, precision=precision, device=device)
        backbone, card = open_backbone(source)
        return TorchEngine(backbone.requires_grad_(False), precision=precision, device=device), card
    except torch.OutOfMemoryError as error:
        raise RecipeError(f"distill.teacher={source} does not fit into the memory of {device}: {error}") from error


def _check_memory(source: str, *, device: torch.device) -> None:
    """Compare the float32 weights of a model folder with the memory that is free, before they are read."""
    folder = Path(source)
    if not (folder / CARD).is_file() or holds_foreign(folder):
        return
    with torch.device("meta"):
        needed = 4 * sum(parameter.numel() for parameter in VisionTransformer(read_card(folder).backbone).parameters())
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    if free is not None and needed > free:
        raise RecipeError(
            f"distill.teacher={source} needs {needed:,} bytes for its weights and {free:,} are free on {device}; "
            "choose a smaller teacher or a device with more memory"
        )


def _free_memory() -> int | None:
    """Return the bytes that this computer can still give, or None where it does not say."""
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return None
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def resize_patches(patches: Tensor, *, grid: Grid, to: Grid) -> Tensor:
    """Resize patch tokens (B, P, D) from one grid to another: bilinear, antialiased where the grid shrinks, in fp32."""
    if grid == to:
        return patches
    batch, _, width = patches.shape
    maps = patches.float().transpose(1, 2).reshape(batch, width, *grid)
    return F.interpolate(maps, size=to, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


class Teacher:
    """A frozen backbone that is shown a student's crops.

    Crops that the student's statistics normalised are normalised with the teacher's instead. Where the crop is no
    multiple of the teacher's patch size, the teacher sees it resized (bicubic, antialiased) to the nearest that is.

    Args:
        source: see `open_teacher`; or a run, whose model is taken.
        mean: of each channel, as the student's crops are normalised.
        std: of each channel, likewise.
        device: where it runs.
        precision: of its forward pass.

    Raises:
        RecipeError: other channels than the student's, or more weights than memory.
        FovealError: it cannot be had, is damaged or unknown.
    """

    def __init__(
        self,
        source: str,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        precision: Precision = "fp32",
    ) -> None:
        folder = model_path(source)
        source = str(folder) if folder.exists() else source
        self.source = source
        self.engine, self.card = open_teacher(source, device=device, precision=precision)
        if len(mean) != len(self.card.mean):
            raise RecipeError(
                f"distill.teacher={source} takes {len(self.card.mean)} channels, backbone.channels={len(mean)}; "
                "choose a teacher with as many"
            )
        self.identity = self.engine.identity
        is_fixed = isinstance(self.engine, ForeignEngine) and self.engine.tower.is_fixed
        self._fixed = self.card.crop_size if is_fixed else None
        ours, theirs = torch.tensor([mean, std]), torch.tensor([self.card.mean, self.card.std])
        same = torch.equal(ours, theirs)
        self._factor = None if same else (ours[1] / theirs[1]).view(1, -1, 1, 1).to(device)
        self._offset = ((ours[0] - theirs[0]) / theirs[1]).view(1, -1, 1, 1).to(device)

    def tokens(self, crops: Tensor, *, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return class tokens (B, D) and patch tokens (B, P, D) of crops (B, C, H, W), float32, no gradient.

        Args:
            crops: normalised with the student's statistics.
            grid: (grid_h, grid_w) of the student's patches; P is their number.
        """
        if self._factor is not None:
            crops = crops * self._factor + self._offset
        patch = self.card.backbone.patch_size
        height, width = (self._fixed or max(1, round(side / patch)) * patch for side in crops.shape[-2:])
        if (height, width) != tuple(crops.shape[-2:]):
            crops = F.interpolate(crops, size=(height, width), mode="bicubic", antialias=True)
        found = self.engine.encode(crops)
        return found.cls, resize_patches(found.patches, grid=(height // patch, width // patch), to=grid)


class TeacherBackbone:
    """A teacher as the training step takes it: the packed tokens are the class token and the student's patches."""

    num_prefix_tokens = 1

    def __init__(self, teacher: Teacher, *, patch_size: int) -> None:
        self._teacher, self._patch_size = teacher, patch_size

    def grid_of(self, crops: Tensor) -> Grid:
        """Return (grid_h, grid_w) of the student's patches in a batch of crops."""
        return crops.shape[-2] // self._patch_size, crops.shape[-1] // self._patch_size

    def forward_rows(
        self,
        images: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        rows: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return chosen packed tokens (R, D) of batches of crops; a teacher sees no masks and drops no branches."""
        packed = []
        for crops in images:
            cls, patches = self._teacher.tokens(crops, grid=self.grid_of(crops))
            packed.append(torch.cat([cls[:, None], patches], dim=1).flatten(0, 1))
        return torch.cat(packed).index_select(0, rows)


class TeacherHeads(NamedTuple):
    """The frozen heads of a pretrained teacher; one and the same where both terms share the DINO head."""

    dino_head: DINOHead
    patch_head: DINOHead


def open_heads(folder: str | Path) -> TeacherHeads:
    """Return the heads of a model folder.

    Raises:
        WeightsError: there are none, they are damaged, or they take another width than the backbone of the card has.
    """
    where = Path(folder) / HEADS
    tensors, width = load_heads(folder), read_card(Path(folder)).backbone.width
    found: dict[str, DINOHead] = {}
    for name in ("dino_head", "ibot_head"):
        part = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        if part:
            found[name] = _head(part, width=width, where=f"{where}: {name}").requires_grad_(False)
    others = [key for key in tensors if key.split(".")[0] not in found]
    if "dino_head" not in found or others:
        raise WeightsError(f"{where} holds {', '.join(others[:3]) or 'no dino_head'}; expected dino_head and ibot_head")
    return TeacherHeads(found["dino_head"], found.get("ibot_head", found["dino_head"]))


def _head(tensors: dict[str, Tensor], *, width: int, where: str) -> DINOHead:
    try:
        hidden, seen = tensors["mlp.0.weight"].shape
        num_prototypes, bottleneck = tensors["last_layer.weight_v"].shape
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{where} has no mlp.0.weight or last_layer.weight_v of two dimensions") from error
    if seen != width:
        raise WeightsError(
            f"{where} takes tokens of width {seen}, the backbone of {CARD} gives width {width}: the two are not of one "
            "run; copy the whole model folder"
        )
    head = DINOHead(width, hidden=hidden, bottleneck=bottleneck, num_prototypes=num_prototypes)
    head.load_state_dict(check_tensors(tensors, head.state_dict(), where=where))
    return head
