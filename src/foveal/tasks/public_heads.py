"""Public heads, opened key by key: official DINOv2 classification, depth and segmentation heads, and Depth Anything.

What a file is shows in its tensors. What no tensor shows (the range of depths, the version of Depth Anything) is read
from the published file name, or has to be given.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from foveal.backbone.containers import read_container
from foveal.backbone.weights import check_tensors
from foveal.errors import WeightsError
from foveal.features.extract import Model
from foveal.tasks.dense import quarter_layers
from foveal.tasks.head import Head, HeadCard, Task, build_network, load_head

_LINEAR = {"weight", "bias"}
_MATRICES = ("conv_seg.weight", "conv_depth.weight")  # whose sizes tell what a head is
_MIN_DEPTH = 0.001
_RANGES = {"nyu": 10.0, "kitti": 80.0}
_DEPTH_ANYTHING_SIZE = 518  # the short side at which its authors' code shows it pictures
_METRIC_RANGES = {"hypersim": 20.0, "vkitti": 80.0}

DepthAnythingVersion = Literal["v1", "v2"]


def open_public_head(
    path: str | Path,
    model: Model,
    *,
    max_depth: float | None = None,
    version: DepthAnythingVersion | None = None,
    classes: Sequence[str] | None = None,
) -> Head:
    """Open a public head for the backbone that it belongs to.

    | file | what opens |
    |---|---|
    | `dinov2_*_{linear,linear4}_head.pth` | linear classification on the last one or four blocks, normed |
    | `dinov2_*_{nyu,kitti}_{linear,linear4}_head.pth` | linear depth on the last or four blocks, not normed |
    | `dinov2_*_{nyu,kitti}_dpt_head.pth` | DPT depth on four blocks, not normed |
    | `dinov2_*_{ade20k,voc2012}_{linear,ms}_head.pth` | linear segmentation on the last one or four blocks, normed |
    | `depth_anything_*.pth`, version 1 and 2 | DPT on the last four (1) or the quarters' ends (2), normed |

    A Depth Anything file holds its backbone too: `foveal.load` opens that from the same file.

    Args:
        path: the file.
        model: the backbone.
        max_depth: end of the range, metres; None reads it from the published file name. A published NYU range is 10, of
            KITTI 80 (the public hub code uses 80 for the linear heads of both, which is not how they were trained).
            For Depth Anything None is relative depth, unless the name is that of a metric checkpoint.
        version: of Depth Anything; None reads it from the published file name.
        classes: of classification: the names, which the files do not hold; None leaves them without.

    Raises:
        WeightsError: no such head, or it does not fit the backbone; the message names the tensors.
    """
    path = Path(path)
    tensors = {_short(name): tensor for name, tensor in read_container(path).tensors.items()}
    is_linear = set(tensors) == _LINEAR
    if classes is not None and not is_linear:
        raise WeightsError(f"{path} is no classification head; leave the names of classes out")
    matrices = ("weight",) if is_linear else _MATRICES
    if flat := [name for name, tensor in tensors.items() if name.endswith(matrices) and tensor.ndim < 2]:
        raise WeightsError(f"{path}: {flat[0]} has the shape {tuple(tensors[flat[0]].shape)}, which is that of no head")
    if is_linear:
        return _classification(tensors, model, path, classes)
    if head := _below("depth_head.", tensors):
        return _depth_anything(head, model, path, max_depth, version)
    head = _below("decode_head.", tensors)
    if version is not None:
        raise WeightsError(f"{path} is no Depth Anything checkpoint; leave version out")
    if "conv_seg.weight" in head:
        return _segmentation(head, model, path)
    if "conv_depth.weight" in head:
        return _linear_depth(head, model, path, max_depth)
    if "conv_depth.head.0.weight" in head:
        return _dpt_depth(head, model, path, max_depth)
    seen = ", ".join(sorted(tensors)[:4]) or "no tensor"
    raise WeightsError(
        f"{path} holds {seen}; public heads hold weight and bias, decode_head.conv_seg, decode_head.conv_depth or "
        "depth_head"
    )


def open_head(
    path: str | Path,
    model: Model,
    *,
    max_depth: float | None = None,
    version: DepthAnythingVersion | None = None,
    classes: Sequence[str] | None = None,
) -> Head:
    """Open a head folder, or the file of a public head; see `load_head` and `open_public_head`.

    Raises:
        WeightsError: neither opens, or what a card says is given for a head folder.
    """
    if Path(path).is_file():
        return open_public_head(path, model, max_depth=max_depth, version=version, classes=classes)
    if max_depth is not None or version is not None or classes is not None:
        raise WeightsError(
            f"max_depth, version and names of classes are for files of public heads; leave them out for {path}"
        )
    return load_head(path)


def _classification(head: dict[str, Tensor], model: Model, path: Path, classes: Sequence[str] | None) -> Head:
    num_classes, num_inputs = head["weight"].shape
    width, depth = model.card.backbone.width, model.card.backbone.depth
    if num_inputs not in (2 * width, 5 * width):
        raise WeightsError(
            f"{path} reads {num_inputs} numbers, and heads of this backbone read {2 * width} or, of four blocks, "
            f"{5 * width}; load the backbone that the head belongs to"
        )
    if classes is not None and len(classes) != num_classes:
        raise WeightsError(
            f"{path} tells {num_classes} classes apart, and {len(classes)} names are given; give as many"
        )
    num_levels = num_inputs // width - 1
    settings = {"num_levels": num_levels, "num_classes": num_classes}
    layers = list(range(depth - num_levels, depth))
    found = _head("classification", "linear", settings, head, model, path, layers=layers, norm=True)
    return Head(found.network, found.card.model_copy(update={"classes": list(classes or ())}))


def _segmentation(head: dict[str, Tensor], model: Model, path: Path) -> Head:
    num_classes, channels = head["conv_seg.weight"].shape[:2]
    num_levels = _num_levels(channels, model.card.backbone.width, path)
    depth = model.card.backbone.depth
    settings = {"num_levels": num_levels, "num_classes": num_classes}
    layers = list(range(depth - num_levels, depth))
    return _head("segmentation", "linear", settings, head, model, path, layers=layers, norm=True)


def _linear_depth(head: dict[str, Tensor], model: Model, path: Path, max_depth: float | None) -> Head:
    num_bins, channels = head["conv_depth.weight"].shape[:2]
    backbone = model.card.backbone
    num_levels = _num_levels(channels, 2 * backbone.width, path)
    settings = {
        "num_levels": num_levels,
        "num_bins": num_bins,
        "min_depth": _MIN_DEPTH,
        "max_depth": _range(path, max_depth, _RANGES),
    }
    layers = [backbone.depth - 1] if num_levels == 1 else list(quarter_layers(backbone.depth))
    return _head("depth", "linear", settings, head, model, path, layers=layers, norm=False)


def _dpt_depth(head: dict[str, Tensor], model: Model, path: Path, max_depth: float | None) -> Head:
    settings = {**_dpt_sizes(head, path), "min_depth": _MIN_DEPTH, "max_depth": _range(path, max_depth, _RANGES)}
    layers = list(quarter_layers(model.card.backbone.depth))
    return _head("depth", "dpt", settings, head, model, path, layers=layers, norm=False)


def _depth_anything(
    found: Mapping[str, Tensor],
    model: Model,
    path: Path,
    max_depth: float | None,
    version: DepthAnythingVersion | None,
) -> Head:
    name = path.name.lower()
    if version is None and "depth_anything" in name:
        version = "v2" if "v2" in name else "v1"
    if version is None:
        raise WeightsError(f"{path} is Depth Anything, of a version that no tensor shows; give version 'v1' or 'v2'")
    if max_depth is None and "metric" in name:
        max_depth = _range(path, None, _METRIC_RANGES)
    head = {_depth_anything_name(key): tensor for key, tensor in found.items()}
    head = {key: tensor for key, tensor in head.items() if not key.startswith("fusion_blocks.0.res_conv_unit1.")}
    settings = {
        **_dpt_sizes(head, path),
        "form": "depth_anything",
        "patch_size": model.card.backbone.patch_size,
        "output": "relu" if max_depth is None else "sigmoid",
        "max_depth": max_depth,
    }
    depth = model.card.backbone.depth
    layers = list(range(depth - 4, depth)) if version == "v1" else list(quarter_layers(depth))
    found_head = _head("depth", "dpt", settings, head, model, path, layers=layers, norm=True)
    lineage = {**found_head.card.lineage, "fit": {"size": _DEPTH_ANYTHING_SIZE}}
    return Head(found_head.network, found_head.card.model_copy(update={"lineage": lineage}))


def _depth_anything_name(name: str) -> str:
    """Return our name of a tensor of Depth Anything's decoder; what it has no use for keeps its own."""
    if found := re.fullmatch(r"projects\.(\d)\.(.+)", name):
        return f"reassemble_blocks.projects.{found[1]}.conv.{found[2]}"
    if name.startswith("resize_layers."):
        return f"reassemble_blocks.{name}"
    name = name.removeprefix("scratch.")
    if found := re.fullmatch(r"layer([1-4])_rn\.(.+)", name):
        return f"convs.{int(found[1]) - 1}.conv.{found[2]}"
    if found := re.fullmatch(r"refinenet([1-4])\.(.+)", name):  # 4 is the deepest, which is fused first
        part = found[2].replace("out_conv.", "project.conv.")
        part = re.sub(r"resConfUnit([12])\.conv([12])\.", r"res_conv_unit\1.conv\2.conv.", part)
        return f"fusion_blocks.{4 - int(found[1])}.{part}"
    name = name.replace("output_conv1.", "conv_depth.head.0.")
    return re.sub(r"output_conv2\.([02])\.", lambda match: f"conv_depth.head.{2 if match[1] == '0' else 4}.", name)


def _head(
    task: Task,
    architecture: str,
    settings: dict[str, Any],
    tensors: dict[str, Tensor],
    model: Model,
    path: Path,
    *,
    layers: list[int],
    norm: bool,
) -> Head:
    backbone = model.card.backbone
    card = HeadCard(
        name=path.stem,
        task=task,
        architecture=architecture,
        settings=settings,
        layers=layers,
        norm=norm,
        backbone=None,
        backbone_name=model.card.name,
        width=backbone.width,
        depth=backbone.depth,
        licence=model.card.licence.unaccepted(),
        lineage={"file": path.name},
    )
    network = build_network(card)
    network.load_state_dict(check_tensors(tensors, network.state_dict(), where=str(path)))
    return Head(network.eval(), card)


def _dpt_sizes(head: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    names = [f"reassemble_blocks.projects.{level}.conv.weight" for level in range(4)]
    if missing := [name for name in (*names, "convs.0.conv.weight") if name not in head]:
        raise WeightsError(f"{path} is a DPT head without {missing[0]}; copy or download it again")
    return {"channels": [len(head[name]) for name in names], "fusion_width": len(head["convs.0.conv.weight"])}


def _num_levels(channels: int, width: int, path: Path) -> int:
    if channels not in (width, 4 * width):
        raise WeightsError(
            f"{path} reads {channels} channels, and this backbone has {width} or, of four blocks, {4 * width}; "
            "load the backbone that the head belongs to"
        )
    return channels // width


def _range(path: Path, max_depth: float | None, known: Mapping[str, float]) -> float:
    if max_depth is not None:
        return max_depth
    found = [limit for name, limit in known.items() if name in path.name.lower()]
    if not found:
        raise WeightsError(f"{path} does not say its range of depths; give max_depth (indoors 10 or 20, driving 80)")
    return found[0]


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _short(name: str) -> str:
    return re.sub(r"^(?:(?:state_dict|model|module)\.)+", "", name)
