"""An answer of the Open Inference Protocol: JSON, and after it tensors as bytes.

Shapes: B images, K classes.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from foveal.serve.problems import Problem
from foveal.serve.v2_request import HEADER


class Output(NamedTuple):
    """A tensor of an answer.

    Attributes:
        name: of it.
        values: float32, or texts of numpy's type str.
        binary: send it as bytes after the JSON.
    """

    name: str
    values: np.ndarray
    binary: bool


def written(outputs: Sequence[Output], about: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """Return the body of an answer and its headers.

    Args:
        outputs: in the order in which they were wanted.
        about: `model_name`, `model_version`, and `id` where the request had one.

    Raises:
        Problem: 422, a number that is not finite: neither JSON nor the client could make anything of it.
    """
    described, blocks = [], []
    for name, values, binary in outputs:
        is_text = values.dtype.kind == "U"
        if not (is_text or np.isfinite(values).all()):
            raise Problem(422, "not_finite", f"{name} of these images is not finite; their values are too large")
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": "BYTES" if is_text else "FP32",
            "shape": list(values.shape),
        }
        if binary:
            blocks.append(_texts(values) if is_text else values.astype("<f4", copy=False).tobytes())
            tensor["parameters"] = {"binary_data_size": len(blocks[-1])}
        else:
            tensor["data"] = values.ravel().tolist()
        described.append(tensor)
    text = json.dumps({**about, "outputs": described}).encode()
    if not blocks:
        return text, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", HEADER.lower(): str(len(text))}
    return b"".join([text, *blocks]), headers


def best(logits: np.ndarray, count: int, classes: Sequence[str]) -> np.ndarray:
    """Return the largest logits of each image as texts "LOGIT:NUMBER:NAME", the largest first.

    Args:
        logits: (B, K).
        count: of classes, at most K.
        classes: names by number.

    Returns:
        (B, min(count, K)) texts.

    Example:
        >>> best(np.array([[0.5, 2.0, -1.0]], np.float32), 2, ["cat", "dog", "owl"]).tolist()
        [['2.000000:1:dog', '0.500000:0:cat']]
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return np.array([[f"{row[k]:f}:{k}:{classes[k]}" for k in ks] for row, ks in zip(logits, order, strict=True)])


def _texts(values: np.ndarray) -> bytes:
    encoded = [text.encode() for text in values.ravel().tolist()]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
