"""Files of pictures in, normalised images of one size out: the model `preprocess` of a Triton repository.

It needs NumPy and Pillow; decoding and transforms are foveal's own files, which lie beside this one.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent


class TritonPythonModel:
    """What Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the transform and the limits, once for each process."""
        sys.path.insert(0, str(HERE))
        from foveal.errors import FovealError
        from foveal.images.decode import DecodeLimits, decode
        from foveal.images.preprocess import Preprocess

        settings = json.loads((HERE / "preprocess.json").read_text())
        self._transform = Preprocess.from_stamp(settings["transform"])
        self._limits = DecodeLimits(**settings["limits"])
        self._max_images = settings["max_images"]
        self._decode, self._user_error = decode, FovealError

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own: a bad picture spoils no other request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        encoded = pb_utils.get_input_tensor_by_name(request, "encoded").as_numpy()
        if not 1 <= len(encoded) <= self._max_images:
            return _refused(f"encoded: {len(encoded)} pictures in a request; give 1 to {self._max_images}")
        images = []
        for number, data in enumerate(encoded):
            try:
                pixels = self._decode(data, channels=self._transform.channels, limits=self._limits)
                images.append(self._transform(pixels))
            except self._user_error as error:
                return _refused(f"encoded[{number}]: {error}")
        return pb_utils.InferenceResponse([pb_utils.Tensor("images", np.stack(images))])


def _refused(message: str) -> Any:
    """Return a response that Triton sends as HTTP 400 or gRPC INVALID_ARGUMENT."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
