"""Requests of the Open Inference Protocol, read to the last byte."""

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

from foveal.serve.problems import Problem
from foveal.serve.v2_request import HEADER, read_infer

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
IMAGES = {"name": "images", "datatype": "FP32", "shape": [2, 3, 2, 2]}
ENCODED = {"name": "encoded", "datatype": "BYTES", "shape": [2]}
FLOATS = ARRAY.tobytes()
TEXTS = struct.pack("<I", 3) + b"abc" + struct.pack("<I", 0)


def read(tensor: dict[str, Any], block: bytes | None = None, *, length: str | None = None, **more: Any) -> Any:
    request = {"inputs": [tensor], **more}
    if block is not None and "binary_data_size" not in tensor.get("parameters", {}):
        request["inputs"] = [{**tensor, "parameters": {"binary_data_size": len(block)}}]
    text = json.dumps(request).encode()
    headers = {} if block is None else {HEADER: str(len(text)) if length is None else length}
    return read_infer(text + (block or b""), headers, max_images=2)


def test_numbers_as_bytes_flat_and_nested() -> None:
    for given in (
        read(IMAGES, FLOATS),
        read({**IMAGES, "data": ARRAY.tolist()}),
        read({**IMAGES, "data": ARRAY.astype(int).ravel().tolist()}),
    ):
        assert given.images.dtype == np.float32
        np.testing.assert_array_equal(given.images, ARRAY)


def test_files_as_bytes_and_as_base64() -> None:
    assert read(ENCODED, TEXTS).images == [b"abc", b""]
    assert read({**ENCODED, "data": [base64.b64encode(b"abc").decode(), ""]}).images == [b"abc", b""]


def with_(tensor: dict[str, Any], **change: Any) -> dict[str, Any]:
    return {**tensor, **change}


NESTED = ARRAY.tolist()
NAN, INF = FLOATS[:-4] + struct.pack("<f", np.nan), FLOATS[:-4] + struct.pack("<f", -np.inf)


@pytest.mark.parametrize(
    ("tensor", "block", "status", "code", "field"),
    [
        (with_(IMAGES, shape=[2, 3, 2]), FLOATS, 422, "invalid_shape", "inputs.0.shape"),
        (with_(IMAGES, shape=[24]), FLOATS, 422, "invalid_shape", "inputs.0.shape"),
        (with_(IMAGES, shape=[2, 3, 2, -2]), FLOATS, 422, "invalid_value", "inputs.0.shape.3"),
        (with_(IMAGES, shape=[2, 3, 0, 2]), b"", 422, "invalid_value", "inputs.0.shape.2"),
        (with_(IMAGES, shape=[2, 3, 2.0, 2]), FLOATS, 422, "invalid_value", "inputs.0.shape.2"),
        (with_(IMAGES, shape=[2, 3, True, 2]), FLOATS, 422, "invalid_value", "inputs.0.shape.2"),
        (with_(IMAGES, shape=[]), FLOATS, 422, "invalid_value", "inputs.0.shape"),
        (with_(IMAGES, shape=[2, 3, 2**31, 2]), FLOATS, 422, "invalid_value", "inputs.0.shape.2"),
        (with_(IMAGES, shape=[2, 10**400, 2, 2]), FLOATS, 422, "invalid_value", "inputs.0.shape.1"),
        (with_(IMAGES, shape=[2, 2**31 - 1, 2**31 - 1, 2**31 - 1]), FLOATS, 422, "wrong_size",
         "inputs.0.parameters.binary_data_size"),
        (with_(IMAGES, shape=[3, 2, 2, 2]), FLOATS, 413, "too_many_images", "inputs.0.shape"),
        (with_(IMAGES, datatype="FP64"), FLOATS, 422, "invalid_datatype", "inputs.0.datatype"),
        (with_(IMAGES, datatype="fp32"), FLOATS, 422, "invalid_value", "inputs.0.datatype"),
        (with_(ENCODED, datatype="FP32"), TEXTS, 422, "invalid_datatype", "inputs.0.datatype"),
        (with_(IMAGES, name="image"), FLOATS, 422, "unknown_input", "inputs.0.name"),
        (with_(IMAGES, name="../images"), FLOATS, 422, "unknown_input", "inputs.0.name"),
        (IMAGES, FLOATS[:-1], 422, "wrong_size", "inputs.0.parameters.binary_data_size"),
        (IMAGES, FLOATS + b"\0", 422, "wrong_size", "inputs.0.parameters.binary_data_size"),
        (with_(IMAGES, parameters={"binary_data_size": 95}), FLOATS, 422, "wrong_size",
         "inputs.0.parameters.binary_data_size"),
        (with_(IMAGES, parameters={"binary_data_size": -1}), FLOATS, 422, "invalid_value",
         "inputs.0.parameters.binary_data_size"),
        (with_(IMAGES, parameters={"binary_data_size": 96}), None, 422, "wrong_size",
         "inputs.0.parameters.binary_data_size"),
        (IMAGES, None, 422, "no_data", "inputs.0.data"),
        (with_(IMAGES, data=NESTED), FLOATS, 422, "data_twice", "inputs.0.data"),
        (IMAGES, NAN, 422, "not_finite", "images"),
        (IMAGES, INF, 422, "not_finite", "images"),
        (with_(IMAGES, data=[float("nan")] * 24), None, 422, "not_finite", "images"),
        (with_(IMAGES, data=[1e39] * 24), None, 422, "not_finite", "images"),
        (with_(IMAGES, data=[10**400] * 24), None, 422, "not_finite", "inputs.0.data"),
        (with_(IMAGES, data=["1"] * 24), None, 422, "invalid_data", "inputs.0.data"),
        (with_(IMAGES, data=[True] * 24), None, 422, "invalid_data", "inputs.0.data"),
        (with_(IMAGES, data=[None] * 24), None, 422, "invalid_data", "inputs.0.data"),
        (with_(IMAGES, data=[1.0] * 23), None, 422, "wrong_size", "inputs.0.data"),
        (with_(IMAGES, data=[]), None, 422, "wrong_size", "inputs.0.data"),
        (with_(IMAGES, data=[NESTED[0], NESTED[1][:2]]), None, 422, "wrong_size", "inputs.0.data"),
        (with_(IMAGES, data=[*NESTED[0], 1.0]), None, 422, "wrong_size", "inputs.0.data"),
        (with_(IMAGES, data=[[[[[1.0], [1.0]]] * 2] * 3] * 2), None, 422, "invalid_data", "inputs.0.data"),
        (with_(ENCODED, data=["!", "AAAA"]), None, 422, "invalid_base64", "inputs.0.data.0"),
        (with_(ENCODED, data=["AAAA", 4]), None, 422, "invalid_data", "inputs.0.data.1"),
        (ENCODED, TEXTS[:-1], 422, "wrong_size", "inputs.0.parameters.binary_data_size"),
        (ENCODED, TEXTS + b"\0", 422, "wrong_size", "inputs.0.parameters.binary_data_size"),
        (ENCODED, b"\xff\xff\xff\xff" + TEXTS[4:], 422, "wrong_size", "inputs.0.parameters.binary_data_size"),
        (with_(IMAGES, extra=1), FLOATS, 422, "invalid_value", "inputs.0.extra"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    tensor: dict[str, Any], block: bytes | None, status: int, code: str, field: str
) -> None:
    with pytest.raises(Problem) as raised:
        read(tensor, block)
    assert (raised.value.status, raised.value.code, raised.value.field) == (status, code, field)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("length", ["", "0", "-1", "+1", "1e2", "٣", "99999999999999999999", "100000"])
def test_the_length_of_the_json_lies_within_the_body(length: str) -> None:
    with pytest.raises(Problem) as raised:
        read(IMAGES, FLOATS, length=length)
    assert (raised.value.status, raised.value.code, raised.value.field) == (400, "invalid_header_length", HEADER)


def test_names_stand_once_and_there_is_one_input() -> None:
    for other, code in ((IMAGES, "duplicate_name"), (ENCODED, "too_many_inputs")):
        body = json.dumps({"inputs": [with_(IMAGES, data=[]), with_(other, data=[])]}).encode()
        with pytest.raises(Problem) as raised:
            read_infer(body, {}, max_images=2)
        assert raised.value.code == code


def test_deep_nesting_is_refused_not_followed() -> None:
    body = b'{"inputs": [{"name": "images", "shape": [1], "datatype": "FP32", "data": ' + b"[" * 100_000 + b"]}]}"
    with pytest.raises(Problem) as raised:
        read_infer(body, {}, max_images=2)
    assert (raised.value.status, raised.value.code) == (400, "json_too_deep")
