"""What the Open Inference Protocol is told of the models: their names, inputs and outputs.

Shapes: D width, R registers, K classes or maps, H W pixels.
"""

from typing import Any, NamedTuple

from foveal.errors import nearest
from foveal.serve.loaded import Loaded
from foveal.serve.problems import Problem
from foveal.serve.v2_request import DATATYPES, ENCODED, IMAGES
from foveal.tasks.classify import ClassPredictor
from foveal.tasks.predict import Predictor

VERSION = "1"
# The names in a repository for Triton, so that the same requests are answered here.
_INPUTS_OF = {"backbone": (IMAGES,), "ensemble": (ENCODED,)}


class Described(NamedTuple):
    """A tensor of a model.

    Attributes:
        name: of it.
        datatype: "FP32" or "BYTES".
        shape: with the batch first; -1 where it varies.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


def model_names(loaded: Loaded) -> list[str]:
    """Return the names under which a model is served; that of its own takes either input."""
    return list(dict.fromkeys([loaded.name, *_INPUTS_OF]))


def check_name(loaded: Loaded, name: str, version: str | None) -> None:
    """Raise Problem 404 unless a model has that name and version."""
    names = model_names(loaded)
    if name not in names:
        known = f"the models here are {', '.join(names)}{nearest(name[:64], names)}"
        raise Problem(404, "model_not_found", known, field="model_name")
    if version not in (None, VERSION):
        raise Problem(404, "version_not_found", f"the only version is {VERSION}", field="model_version")


def inputs_of(loaded: Loaded, name: str) -> list[Described]:
    """Return the inputs of a model, of which a request gives one."""
    shapes = {IMAGES: (-1, loaded.model.card.backbone.channels, -1, -1), ENCODED: (-1,)}
    allowed = (IMAGES, ENCODED) if name == loaded.name else _INPUTS_OF[name]
    return [Described(one, DATATYPES[one], shapes[one]) for one in allowed]


def outputs_of(loaded: Loaded) -> list[Described]:
    """Return the outputs of a model: its tokens, and the logits or maps of its heads."""
    backbone = loaded.model.card.backbone
    shapes: dict[str, tuple[int, ...]] = {"cls": (-1, backbone.width), "patches": (-1, -1, backbone.width)}
    if backbone.num_registers:
        shapes["registers"] = (-1, backbone.num_registers, backbone.width)
    for name, predictor in loaded.heads.items():
        is_class = isinstance(predictor, ClassPredictor)
        shapes[name] = (-1, num_maps(predictor)) if is_class else (-1, num_maps(predictor), -1, -1)
    return [Described(name, "FP32", shape) for name, shape in shapes.items()]


def num_maps(predictor: ClassPredictor | Predictor) -> int:
    """Return K of a head."""
    card = predictor.head.card
    return 1 if card.task == "depth" else int(card.settings["num_classes"])


def num_values(loaded: Loaded, output: Described, height: int, width: int) -> int:
    """Return how many numbers an output has for an image of H x W pixels."""
    backbone = loaded.model.card.backbone
    if output.name == "patches":
        return height * width // backbone.patch_size**2 * backbone.width
    found = 1
    for size, varies in zip(output.shape[1:], (1, height, width), strict=False):
        found *= varies if size == -1 else size
    return found


def metadata(loaded: Loaded, name: str) -> dict[str, Any]:
    """Return the metadata of a model."""

    def listed(tensors: list[Described]) -> list[dict[str, Any]]:
        return [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in tensors]

    return {
        "name": name,
        "versions": [VERSION],
        "platform": "foveal",
        "inputs": listed(inputs_of(loaded, name)),
        "outputs": listed(outputs_of(loaded)),
    }


def config(loaded: Loaded, name: str) -> dict[str, Any]:
    """Return the configuration of a model, in the terms of Triton; every tensor names the batch itself."""

    def listed(tensors: list[Described], **more: Any) -> list[dict[str, Any]]:
        types = {"FP32": "TYPE_FP32", "BYTES": "TYPE_STRING"}
        return [
            {"name": one.name, "data_type": types[one.datatype], "dims": list(one.shape), **more} for one in tensors
        ]

    inputs = inputs_of(loaded, name)
    return {
        "name": name,
        "platform": "foveal",
        "backend": "foveal",
        "max_batch_size": 0,
        "input": listed(inputs, **({"optional": True} if len(inputs) > 1 else {})),
        "output": listed(outputs_of(loaded)),
    }
