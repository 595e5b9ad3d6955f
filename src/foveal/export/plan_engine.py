"""The engine that runs a TensorRT plan, on the kind of GPU for which it was built.

It is written by TensorRT's documentation and tried with a stand-in; no plan was run with it yet.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveal.export.card import ExportCard, ExportError
from foveal.export.graph_engine import GraphEngine

DEVICE = "cuda"
IMAGES = "images"


class PlanEngine(GraphEngine):
    """Runs a plan of `foveal export tensorrt` or `triton`: normalised images in, float32 tokens and what heads say out.

    Args:
        path: of the plan.
        card: of the export, which says what is in it.

    Raises:
        ExportError: TensorRT or a GPU is missing, or the plan is not for this GPU and this TensorRT.
    """

    def __init__(self, path: Path, card: ExportCard) -> None:
        tensorrt = _import_tensorrt(path)
        self._version, self._precision = str(tensorrt.__version__), card.precision
        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
        plan = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if plan is None:
            raise ExportError(
                f"{path} is of another GPU or another TensorRT than {self._version}; run build.sh beside it here"
            )
        self._context = plan.create_execution_context()
        names = [plan.get_tensor_name(number) for number in range(plan.num_io_tensors)]
        outputs = [name for name in names if plan.get_tensor_mode(name) == tensorrt.TensorIOMode.OUTPUT]
        least, _, most = plan.get_tensor_profile_shape(IMAGES, 0)
        self.least, self.most = tuple(least), tuple(most)
        super().__init__(path, config=card.backbone, identity=card.identity, output_names=outputs)

    @property
    def description(self) -> dict[str, str]:
        """Return what a stamp says of this engine."""
        return {"name": "tensorrt", "precision": self._precision, "device": DEVICE, "version": self._version}

    def takes(self, shape: Sequence[int]) -> bool:
        """Say whether a shape (B, C, H, W) lies between the least and the largest of the plan."""
        return all(least <= size <= most for least, size, most in zip(self.least, shape, self.most, strict=True))

    def infer(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """Return outputs of the plan, in the order of their names.

        Raises:
            ExportError: images of a shape that the plan does not take.
        """
        images = torch.from_numpy(inputs[IMAGES]).to(DEVICE)
        if not self.takes(images.shape):
            raise ExportError(
                f"{self.path} takes images from {self.least} to {self.most}, and these are {tuple(images.shape)}; "
                "export again with other --batch, --height or --width"
            )
        self._context.set_input_shape(IMAGES, tuple(images.shape))
        memory = {IMAGES: images}
        for name in self.output_names:
            memory[name] = torch.empty(tuple(self._context.get_tensor_shape(name)), device=DEVICE)
        for name, values in memory.items():
            self._context.set_tensor_address(name, values.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise ExportError(f"{self.path} fails on {tuple(images.shape)}; what TensorRT printed above says why")
        return [memory[name].cpu().numpy() for name in names]  # waits for the stream


def _import_tensorrt(path: Path) -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise ExportError(
            f"{path} is run by TensorRT, which cannot be imported ({error}); verify it on the GPU that will serve, "
            "with pip install tensorrt"
        ) from error
    if not torch.cuda.is_available():
        raise ExportError(f"{path} runs on a GPU, and PyTorch finds none; verify it on the one that will serve")
    return tensorrt
