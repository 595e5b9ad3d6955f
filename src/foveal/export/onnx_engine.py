"""The engine that runs an exported ONNX graph with ONNX Runtime."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import Tokens, layer_numbers
from foveal.export.card import ExportError
from foveal.export.graph_engine import GraphEngine
from foveal.export.runtimes import require

GRAPH = "model.onnx"
_NORM_EPS = 1e-6


class OnnxEngine(GraphEngine):
    """Runs a graph of `foveal export onnx`: normalised images in, float32 tokens and what heads say out.

    Args:
        source: the folder of an export, or its graph file.
        num_threads: of ONNX Runtime; None is as many as PyTorch uses.
        providers: of ONNX Runtime, in the order of preference.

    Raises:
        ExportError: ONNX Runtime is not installed, or the file is none of ours or cannot be run.

    Example:
        >>> engine = OnnxEngine("exported")  # doctest: +SKIP
        >>> engine.outputs(images)["cls"].shape  # doctest: +SKIP
        (2, 384)
    """

    def __init__(
        self,
        source: str | Path,
        *,
        num_threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        source = Path(source)
        path = source / GRAPH if source.is_dir() else source
        self._open = _Opener(path, num_threads=num_threads or torch.get_num_threads(), providers=providers)
        self._session = self._open(str(path))
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        if "foveal.backbone" not in self.metadata:
            raise ExportError(f"{path} is no graph of foveal export; give one, or its folder")
        super().__init__(
            path,
            config=BackboneConfig.model_validate(json.loads(self.metadata["foveal.backbone"])),
            identity=self.metadata["foveal.identity"],
            output_names=[one.name for one in self._session.get_outputs()],
        )
        self._inner: dict[tuple[int, ...], Any] = {}

    @property
    def description(self) -> dict[str, str]:
        """Return what a stamp says of this engine."""
        return {
            "name": "onnxruntime",
            "precision": self.metadata["foveal.precision"],
            "device": self._open.device,
            "version": self._open.version,
        }

    def infer(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """Return outputs of the graph, in the order of their names."""
        return self._open.run(self._session, inputs, names)

    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens after chosen blocks (the last n, or a list of numbers from 0), in ascending order.

        The blocks' tokens are inside the graph under the names blocks.0 and so on; a second session, opened for a
        choice of layers, gives them out. It needs the package onnx.
        """
        wanted = layer_numbers(layers, depth=self.config.depth)
        if wanted not in self._inner:
            self._inner = {wanted: self._open_inside(wanted)}
        session, weight, bias = self._inner[wanted]
        arrays = self._open.run(session, {"images": self.pixels(batch)}, [f"blocks.{number}" for number in wanted])
        found = [torch.from_numpy(array) for array in arrays]
        if norm:
            found = [F.layer_norm(x, x.shape[-1:], weight, bias, _NORM_EPS) for x in found]
        prefix = 1 + self.config.num_registers
        return [Tokens(x[:, 0], x[:, 1:prefix], x[:, prefix:]) for x in found]

    def _open_inside(self, layers: Sequence[int]) -> tuple[Any, Tensor, Tensor]:
        """Return a session that gives the tokens after blocks, and weight and bias of the final norm."""
        onnx, numpy_helper = require("onnx", "onnx.numpy_helper")
        model = onnx.load(self.path, load_external_data=False)
        value = onnx.helper.make_tensor_value_info
        del model.graph.output[:]
        model.graph.output.extend(value(f"blocks.{number}", onnx.TensorProto.FLOAT, None) for number in layers)
        norm = {one.name: one for one in model.graph.initializer if one.name in ("norm.weight", "norm.bias")}
        weight, bias = (
            torch.from_numpy(numpy_helper.to_array(norm[name], base_dir=str(self.path.parent)).copy())
            for name in ("norm.weight", "norm.bias")
        )
        return self._open(model.SerializeToString()), weight, bias


class OnnxHead:
    """Runs a head that was exported apart, on what the backbone's graph gives out.

    Args:
        backbone: of the same export.
        name: of the head.
    """

    def __init__(self, backbone: OnnxEngine, name: str) -> None:
        self._backbone, self._name = backbone, name
        path = backbone.path.with_name(f"{name}.onnx")
        self._open = _Opener(path, num_threads=torch.get_num_threads())
        self._session = self._open(str(path))
        self._reads = [one.name for one in self._session.get_inputs()]

    def __call__(self, batch: Tensor) -> np.ndarray:
        """Return what the head says of normalised images (B, C, H, W)."""
        (found,) = self._open.run(self._session, self._backbone.outputs(batch, self._reads), [self._name])
        return found


class _Opener:
    """Opens sessions of ONNX Runtime and runs them, with its errors as ours."""

    def __init__(self, path: Path, *, num_threads: int, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        self._runtime, state = require("onnxruntime", "onnxruntime.capi.onnxruntime_pybind11_state")
        if not path.is_file():
            raise ExportError(f"{path} does not exist; foveal export onnx writes it")
        self._path, self._providers = path, list(providers)
        self._settings = self._runtime.SessionOptions()
        self._settings.intra_op_num_threads = num_threads
        self._settings.log_severity_level = 4  # errors are raised
        # Where weights lie beside a graph that comes as bytes.
        folder = "session.model_external_initializers_file_folder_path"
        self._settings.add_session_config_entry(folder, str(path.parent))
        # Its exceptions have no base of their own.
        found = (one for one in vars(state).values() if isinstance(one, type) and issubclass(one, Exception))
        self._errors = tuple(found)

    @property
    def version(self) -> str:
        return str(self._runtime.__version__)

    @property
    def device(self) -> str:
        return "cpu" if self._providers == ["CPUExecutionProvider"] else ",".join(self._providers)

    def __call__(self, model: str | bytes) -> Any:
        try:
            return self._runtime.InferenceSession(model, self._settings, providers=self._providers)
        except self._errors as error:
            raise ExportError(f"{self._path} cannot be run by ONNX Runtime: {error}; export the model again") from error

    def run(self, session: Any, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        try:
            return session.run(list(names), dict(inputs))
        except self._errors as error:
            shapes = {name: values.shape for name, values in inputs.items()}
            raise ExportError(f"{self._path} fails on {shapes}: {error}; export the model again") from error
