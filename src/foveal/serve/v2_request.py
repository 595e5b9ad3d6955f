"""A request of the Open Inference Protocol: JSON, and after it tensors as bytes; pure functions of what was sent.

Source: the protocol's required REST API, version 2, and Triton's extension for binary tensor data.
"""

import math
import struct
from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from foveal.serve.inputs import Part, from_base64
from foveal.serve.limits import parse_json
from foveal.serve.problems import Problem

HEADER = "Inference-Header-Content-Length"
IMAGES, ENCODED = "images", "encoded"
DATATYPES = {IMAGES: "FP32", ENCODED: "BYTES"}
_RANKS = {IMAGES: 4, ENCODED: 1}
_MOST = 2**31 - 1

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16",
    "BYTES",
]  # fmt: skip
Name = Annotated[str, Field(min_length=1, max_length=64)]


class InputParameters(Part):
    """How a tensor is sent.

    Attributes:
        binary_data_size: bytes after the JSON, in the order of the inputs; left out: `data` holds the numbers.
    """

    binary_data_size: int | None = Field(default=None, ge=0, le=_MOST)


class InputTensor(Part):
    """A tensor that is sent.

    Attributes:
        name: "images", normalised, or "encoded", files of pictures.
        shape: (B, C, H, W), or (B,).
        datatype: "FP32", or "BYTES".
        parameters: how it is sent.
        data: numbers, flat or nested, row after row; for "encoded" base64.
    """

    name: Name
    shape: list[Annotated[int, Field(ge=1, le=_MOST)]] = Field(min_length=1, max_length=8)
    datatype: Datatype
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class OutputParameters(Part):
    """How a tensor is wanted.

    Attributes:
        binary_data: as bytes after the JSON; left out: as `binary_data_output` says.
        classification: of a head for classes: the best so many, as "LOGIT:NUMBER:NAME", instead of all logits.
    """

    binary_data: bool | None = None
    classification: int = Field(default=0, ge=0, le=_MOST)


class WantedTensor(Part):
    """A tensor that is wanted."""

    name: Name
    parameters: OutputParameters = OutputParameters()


class RequestParameters(Part):
    """Of the request as a whole.

    Attributes:
        binary_data_output: outputs come as bytes unless they say otherwise.
        timeout: for the answer, microseconds; 0 is that of the server.
        priority: taken and not used: nobody is served before others.
    """

    binary_data_output: bool = False
    timeout: int = Field(default=0, ge=0, le=2**63 - 1)
    priority: int = Field(default=0, ge=0, le=2**63 - 1)


class InferRequest(Part):
    """Tensors that are sent, and those that are wanted.

    Attributes:
        id: comes back with the answer.
        parameters: of the request as a whole.
        inputs: "images" or "encoded".
        outputs: left out: all.
    """

    id: str | None = Field(None, max_length=256)
    parameters: RequestParameters = RequestParameters()
    inputs: list[InputTensor] = Field(min_length=1, max_length=16)
    outputs: list[WantedTensor] | None = Field(None, min_length=1, max_length=64)


class Given(NamedTuple):
    """What a request holds.

    Attributes:
        request: its JSON.
        images: normalised images (B, C, H, W) float32, or B files.
    """

    request: InferRequest
    images: np.ndarray | list[bytes]


def read_infer(body: bytes, headers: Mapping[str, str], *, max_images: int) -> Given:
    """Return what a request holds, checked to the last byte.

    Args:
        body: JSON, and bytes of tensors after it.
        headers: of which `Inference-Header-Content-Length` says how long the JSON is; without it all of the body is.
        max_images: in a request.

    Raises:
        Problem: whatever is wrong, with the field of the request that is meant.
    """
    text, binary = _split(body, headers.get(HEADER))
    request = parse_json(InferRequest, text)
    _check_names([one.name for one in request.inputs], "inputs")
    _check_names([one.name for one in request.outputs or ()], "outputs")
    (tensor,) = _only(request.inputs)
    _check_shape(tensor, max_images)
    sent = _bytes_of(tensor, binary)
    images: np.ndarray | list[bytes]
    if tensor.name == IMAGES:
        images = _numbers(tensor) if sent is None else _floats(sent, tensor.shape)
        if not np.isfinite(images).all():
            raise Problem(422, "not_finite", "numbers that are not finite in float32; repair the images", field=IMAGES)
    else:
        images = _files(tensor) if sent is None else _elements(sent, tensor.shape[0])
    tensor.data = None  # large, and no longer needed
    return Given(request, images)


def _split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    if length is None:
        return body, b""
    if not (length.isascii() and length.isdigit() and len(length) < 20 and 0 < int(length) <= len(body)):
        raise Problem(
            400,
            "invalid_header_length",
            f"the length of the JSON is 1 to the {len(body)} bytes of the body",
            field=HEADER,
        )
    return body[: int(length)], body[int(length) :]


def _check_names(names: list[str], field: str) -> None:
    for number, name in enumerate(names):
        if name in names[:number]:
            raise Problem(422, "duplicate_name", "a tensor is named twice; name each once", field=f"{field}.{number}")


def _only(inputs: list[InputTensor]) -> list[InputTensor]:
    """Return the one input; Problem where it has no known name or there is another one."""
    for number, one in enumerate(inputs):
        if one.name not in DATATYPES:
            raise Problem(422, "unknown_input", "the inputs are images and encoded", field=f"inputs.{number}.name")
    if len(inputs) > 1:
        raise Problem(422, "too_many_inputs", "give either images or encoded", field="inputs")
    return inputs


def _check_shape(tensor: InputTensor, max_images: int) -> None:
    datatype, rank = DATATYPES[tensor.name], _RANKS[tensor.name]
    if tensor.datatype != datatype:
        raise Problem(
            422, "invalid_datatype", f"{tensor.name} is {tensor.datatype}; send {datatype}", field="inputs.0.datatype"
        )
    if len(tensor.shape) != rank:
        wanted = "[batch, channels, height, width]" if rank == 4 else "[batch]"
        raise Problem(
            422,
            "invalid_shape",
            f"{tensor.name} has {len(tensor.shape)} dimensions; give {wanted}",
            field="inputs.0.shape",
        )
    if tensor.shape[0] > max_images:
        raise Problem(
            413,
            "too_many_images",
            f"{tensor.shape[0]} images, allowed are {max_images} in a request; send several requests",
            field="inputs.0.shape",
        )


def _bytes_of(tensor: InputTensor, binary: bytes) -> bytes | None:
    """Return the bytes of a tensor, None where its data are in the JSON; Problem where they are in both or neither."""
    size = tensor.parameters.binary_data_size
    if size is not None and tensor.data is not None:
        raise Problem(422, "data_twice", "data and binary_data_size; send one of them", field="inputs.0.data")
    if size is None and tensor.data is None:
        raise Problem(422, "no_data", "neither data nor binary_data_size; send one of them", field="inputs.0.data")
    if len(binary) != (size or 0):
        raise Problem(
            422,
            "wrong_size",
            f"{len(binary)} bytes after the JSON, which announces {size or 0}; {HEADER} says where they begin",
            field="inputs.0.parameters.binary_data_size",
        )
    return None if size is None else binary


def _floats(sent: bytes, shape: list[int]) -> np.ndarray:
    if len(sent) != 4 * math.prod(shape):
        raise Problem(
            422,
            "wrong_size",
            f"{len(sent)} bytes, for this shape are needed {4 * math.prod(shape)}",
            field="inputs.0.parameters.binary_data_size",
        )
    return np.frombuffer(sent, "<f4").reshape(shape)


def _elements(sent: bytes, count: int) -> list[bytes]:
    """Return the elements of a tensor of bytes: before each its length, 4 bytes little-endian."""
    found: list[bytes] = []
    start = 0
    for number in range(count):
        if len(sent) - start < 4:
            raise _broken(f"it ends before the length of element {number} of {count}")
        (size,) = struct.unpack_from("<I", sent, start)
        start += 4
        if size > len(sent) - start:
            raise _broken(f"element {number} has {size} bytes, and {len(sent) - start} are left")
        found.append(sent[start : start + size])
        start += size
    if start < len(sent):
        raise _broken(f"{len(sent) - start} bytes are left after {count} elements")
    return found


def _broken(what: str) -> Problem:
    message = f"{what}; each element is its length, 4 bytes little-endian, and then its bytes"
    return Problem(422, "wrong_size", message, field="inputs.0.parameters.binary_data_size")


def _numbers(tensor: InputTensor) -> np.ndarray:
    values = _flat(tensor.data or [], tensor.shape)
    if not set(map(type, values)) <= {int, float}:
        raise Problem(422, "invalid_data", "data hold something that is no number", field="inputs.0.data")
    try:
        with np.errstate(over="ignore"):
            return np.array(values, np.float64).astype(np.float32).reshape(tensor.shape)
    except OverflowError:
        raise Problem(422, "not_finite", "a number too large for float32", field="inputs.0.data") from None


def _flat(data: list[Any], shape: list[int]) -> list[Any]:
    """Return data, flat or nested as the shape says, as one list; Problem where they have another form."""
    if not (data and isinstance(data[0], list)):
        rows, sizes = [data], [math.prod(shape)]
    else:
        rows, sizes = [data], shape
    for size in sizes:
        if not all(isinstance(row, list) and len(row) == size for row in rows):
            raise Problem(
                422, "wrong_size", "data have not the form that shape says; flat or nested", field="inputs.0.data"
            )
        rows = list(chain.from_iterable(rows))
    return rows


def _files(tensor: InputTensor) -> list[bytes]:
    texts = _flat(tensor.data or [], tensor.shape)
    found = []
    for number, text in enumerate(texts):
        field = f"inputs.0.data.{number}"
        if not isinstance(text, str):
            raise Problem(422, "invalid_data", "no text; give base64, or send bytes", field=field)
        found.append(from_base64(text, field=field))
    return found
