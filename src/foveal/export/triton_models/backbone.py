"""Normalised images in, tokens and answers of heads out: the model `backbone` where Triton has no ONNX Runtime itself.

It needs NumPy and ONNX Runtime, and the graph `model.onnx` beside this file.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent
_PROVIDERS = {"CPU": "CPUExecutionProvider", "GPU": "CUDAExecutionProvider"}


class TritonPythonModel:
    """What Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph on the device of this instance."""
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["threads"]["string_value"])
        self._patch_size = int(config["parameters"]["patch_size"]["string_value"])
        kind = args["model_instance_kind"]
        provider, device = _PROVIDERS[kind], {"device_id": args["model_instance_device_id"]} if kind == "GPU" else {}
        if provider not in onnxruntime.get_available_providers():
            raise RuntimeError(f"the model's environment has no {provider}; install onnxruntime-gpu, or use KIND_CPU")
        self._session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), options, providers=[(provider, device)])
        self._outputs = [output["name"] for output in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests as one batch; Triton joins only those with images of one size."""
        batches = [pb_utils.get_input_tensor_by_name(request, "images").as_numpy() for request in requests]
        height, width = batches[0].shape[2:]
        if height % self._patch_size or width % self._patch_size or not height * width:
            text = f"images: {height} x {width} pixels; give multiples of the patch size, {self._patch_size}"
            error = pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)
            return [pb_utils.InferenceResponse(error=error) for _ in requests]
        ends = np.cumsum([len(batch) for batch in batches])[:-1]
        asked = {name for request in requests for name in request.requested_output_names()}
        names = [name for name in self._outputs if name in asked]
        found = self._session.run(names, {"images": np.concatenate(batches)})
        shares = [np.split(array, ends) for array in found]
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, share[i]) for name, share in zip(names, shares, strict=True)]
            )
            for i in range(len(requests))
        ]
