"""Triton's `config.pbtxt` of the three models: messages as dictionaries, and protobuf's text format of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foveal.export.triton_sizing import QUEUED_BATCHES, Batching, Device

BackendName = Literal["onnx", "tensorrt", "python"]
Section = tuple[str, Mapping[str, Any]]  # a comment, or nothing, and the fields below it

ENCODED = "encoded"
WARMUP_PICTURE = "picture"
# What tells Triton which program runs a backbone, and the file it looks for in 1/.
BACKENDS: dict[BackendName, tuple[dict[str, str], str]] = {
    "onnx": ({"platform": "onnxruntime_onnx"}, "model.onnx"),
    "tensorrt": ({"platform": "tensorrt_plan"}, "model.plan"),
    "python": ({"backend": "python"}, "model.py"),
}


class Word(str):
    """The name of an enum's value, which stands without quotes."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of the graph.

    Attributes:
        name: as in the graph.
        dims: without the batch; -1 where it varies.
    """

    name: str
    dims: tuple[int, ...]

    def field(self, *, batched: bool = True) -> dict[str, Any]:
        """Return its message; a model without batching names the batch as a dimension of its own."""
        dims = list(self.dims) if batched else [-1, *self.dims]
        return {"name": self.name, "data_type": Word("TYPE_FP32"), "dims": dims}


@dataclass(frozen=True)
class Graph:
    """What the configuration has to fit: the signature of the backbone's graph, heads included."""

    images: Tensor
    outputs: tuple[Tensor, ...]


def backbone_config(
    graph: Graph, *, backend: BackendName, device: Device, batches: Batching, side: int, patch_size: int
) -> str:
    """Return the configuration of `backbone`: normalised images in, tokens and answers of heads out.

    Args:
        graph: its signature.
        backend: what runs it.
        device: what it runs on.
        batches: how requests are joined.
        side: of the images that are run before the model says that it is ready, pixels.
        patch_size: of which sides are multiples, pixels.
    """
    program, file = BACKENDS[backend]
    rate = batches.images_per_s
    speed = "" if rate is None else f" Computed, not measured: {rate:,.0f} images/s a GPU."
    sections: list[Section] = [
        (
            "The backbone with its heads: normalised images in, tokens and answers out.",
            {
                "name": "backbone",
                **program,
                "default_model_filename": file,
                "max_batch_size": batches.max_batch,
                "input": [graph.images.field()],
                "output": [tensor.field() for tensor in graph.outputs],
            },
        ),
        (
            f"{device.title}: with two instances one copies while the other computes."
            if device.instances > 1
            else f"{device.title}: one instance, which uses all cores.",
            {"instance_group": [{"count": device.instances, "kind": Word(device.kind)}]},
        ),
        (
            "Requests with images of one size are joined. The first waits a quarter of the time that the largest batch"
            f" takes; what waits beyond {QUEUED_BATCHES} batches is refused.{speed}",
            {"dynamic_batching": _dynamic_batching(batches)},
        ),
        (
            "Every batch that is preferred is run once before the model is ready: the first run of a shape is slow.",
            {"model_warmup": [_warmup(graph.images, size, side) for size in sorted({1, *batches.preferred})]},
        ),
    ]
    if backend == "python":
        parameters = [_parameter("threads", "0"), _parameter("patch_size", str(patch_size))]
        sections.append(("Threads of one instance, of which 0 takes all cores; pixels.", {"parameters": parameters}))
    return config_text(sections)


def preprocess_config(images: Tensor, *, device: Device, warmup: bool) -> str:
    """Return the configuration of `preprocess`: files of pictures in, normalised images of one size out.

    Args:
        images: what it makes, with the size of the crop.
        device: what the backbone runs on.
        warmup: there is a picture to warm up on.
    """
    sections: list[Section] = [
        (
            "Files of pictures (JPEG, PNG, ...) in, normalised images out, resized and cut as the model's card says.",
            {
                "name": "preprocess",
                "backend": "python",
                "max_batch_size": 0,
                "input": [_encoded_field()],
                "output": [images.field(batched=False)],
            },
        ),
        (
            "Processes, about one a core: decoding and resizing are work for the CPU; requests are spread over them.",
            {"instance_group": [{"count": device.preprocessors, "kind": Word("KIND_CPU")}]},
        ),
    ]
    if warmup:
        picture = {"data_type": Word("TYPE_STRING"), "dims": [1], "input_data_file": WARMUP_PICTURE}
        sample = {"name": "one picture", "batch_size": 1, "inputs": [_entry(ENCODED, picture)]}
        sections.append(("A picture is decoded before the model is ready.", {"model_warmup": [sample]}))
    return config_text(sections)


def ensemble_config(graph: Graph) -> str:
    """Return the configuration of `ensemble`: files of pictures in, tokens and answers of heads out."""
    names = [tensor.name for tensor in graph.outputs]
    steps = [_step("preprocess", [ENCODED], [graph.images.name]), _step("backbone", [graph.images.name], names)]
    return config_text(
        [
            (
                "Files of pictures in, tokens and answers out. Batches are joined in `backbone`.",
                {
                    "name": "ensemble",
                    "platform": "ensemble",
                    "max_batch_size": 0,
                    "input": [_encoded_field()],
                    "output": [tensor.field(batched=False) for tensor in graph.outputs],
                    "ensemble_scheduling": {"step": steps},
                },
            )
        ]
    )


def _encoded_field() -> dict[str, Any]:
    return {"name": ENCODED, "data_type": Word("TYPE_STRING"), "dims": [-1]}


def _dynamic_batching(batches: Batching) -> dict[str, Any]:
    return {
        "preferred_batch_size": list(batches.preferred),
        "max_queue_delay_microseconds": batches.delay_us,
        "default_queue_policy": {"max_queue_size": QUEUED_BATCHES * batches.max_batch},
    }


def _warmup(images: Tensor, batch_size: int, side: int) -> dict[str, Any]:
    zeros = {"data_type": Word("TYPE_FP32"), "dims": [images.dims[0], side, side], "zero_data": True}
    return {"name": f"batch of {batch_size}", "batch_size": batch_size, "inputs": [_entry(images.name, zeros)]}


def _step(model: str, inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
    maps = {"input_map": inputs, "output_map": outputs}
    entries = {field: [{"key": name, "value": name} for name in names] for field, names in maps.items()}
    return {"model_name": model, "model_version": -1, **entries}


def _parameter(name: str, value: str) -> dict[str, Any]:
    return _entry(name, {"string_value": value})


def _entry(key: str, value: Mapping[str, Any]) -> dict[str, Any]:
    return {"key": key, "value": value}


def config_text(sections: Sequence[Section]) -> str:
    """Return sections of fields in protobuf's text format, each below its comment.

    Example:
        >>> print(config_text([("Why.", {"name": "a", "dims": [1, -1], "kind": Word("KIND_CPU")})]), end="")
        # Why.
        name: "a"
        dims: [1, -1]
        kind: KIND_CPU
    """
    return "\n".join("".join(line + "\n" for line in [f"# {comment}", *_lines(fields)]) for comment, fields in sections)


def _lines(fields: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, value in fields.items():
        messages = value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]
        for one in messages:
            if isinstance(one, Mapping):
                lines += [f"{name} {{", *(f"  {line}" for line in _lines(one)), "}"]
            else:
                lines.append(f"{name}: {_scalar(one)}")
    return lines


def _scalar(value: object) -> str:
    if isinstance(value, Word):
        return value
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    return json.dumps(value)  # true, false, numbers, and strings in double quotes
