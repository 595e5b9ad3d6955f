"""The engine that runs an exported ONNX graph with ONNX Runtime."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.backbone.variants import BackboneConfig, multiple_of_patch
from foveal.backbone.vit import Tokens, layer_numbers
from foveal.errors import FovealError
from foveal.export.card import ExportError
from foveal.export.runtimes import require

GRAPH = "model.onnx"
_NORM_EPS = 1e-6


class OnnxEngine:
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
        self._runtime, state = require("onnxruntime", "onnxruntime.capi.onnxruntime_pybind11_state")
        # Its exceptions have no base of their own.
        self._errors = tuple(
            one for one in vars(state).values() if isinstance(one, type) and issubclass(one, Exception)
        )
        source = Path(source)
        self.path = source / GRAPH if source.is_dir() else source
        self._num_threads = num_threads or torch.get_num_threads()
        self._providers = list(providers)
        if not self.path.is_file():
            raise ExportError(f"{self.path} does not exist; foveal export onnx writes it")
        self._session = self._open(str(self.path))
        metadata = self._session.get_modelmeta().custom_metadata_map
        if "foveal.backbone" not in metadata:
            raise ExportError(f"{self.path} is no graph of foveal export; give one, or its folder")
        self.metadata: Mapping[str, str] = metadata
        self.config = BackboneConfig.model_validate(json.loads(metadata["foveal.backbone"]))
        self.output_names = [one.name for one in self._session.get_outputs()]
        self._inner: dict[tuple[int, ...], Any] = {}

    @property
    def description(self) -> dict[str, str]:
        """Return what a stamp says of this engine."""
        return {
            "name": "onnxruntime",
            "precision": self.metadata["foveal.precision"],
            "device": "cpu" if self._providers == ["CPUExecutionProvider"] else ",".join(self._providers),
            "version": self._runtime.__version__,
        }

    @property
    def identity(self) -> str:
        """Return the hash of the backbone that was exported; see `identity_of`."""
        return self.metadata["foveal.identity"]

    def encode(self, batch: Tensor) -> Tokens:
        """Return the tokens of the last block after the final norm.

        Args:
            batch: (B, C, H, W) float32, normalised; H and W multiples of the patch size.
        """
        wanted = [name for name in ("cls", "patches", "registers") if name in self.output_names]
        found = {name: torch.from_numpy(array) for name, array in self.outputs(batch, wanted).items()}
        cls = found["cls"]
        return Tokens(cls, found.get("registers", cls.new_empty(len(cls), 0, cls.shape[1])), found["patches"])

    def outputs(self, batch: Tensor, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return outputs of the graph by name.

        Args:
            batch: as of `encode`.
            names: those wanted; None is all.

        Raises:
            FovealError: channels or sizes that the backbone does not take, or an output that there is not.
        """
        names = self.output_names if names is None else list(names)
        if missing := [name for name in names if name not in self.output_names]:
            raise FovealError(f"{self.path} has no output {missing[0]}; it has {', '.join(self.output_names)}")
        return dict(zip(names, self._run(self._session, names, batch), strict=True))

    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens after chosen blocks (the last n, or a list of numbers from 0), in ascending order.

        The blocks' tokens are inside the graph under the names blocks.0 and so on; a second session, opened for a
        choice of layers, gives them out. It needs the package onnx.
        """
        wanted = layer_numbers(layers, depth=self.config.depth)
        if wanted not in self._inner:
            self._inner = {wanted: self._open_inside(wanted)}
        session, weight, bias = self._inner[wanted]
        arrays = self._run(session, [f"blocks.{number}" for number in wanted], batch)
        found = [torch.from_numpy(array) for array in arrays]
        if norm:
            found = [F.layer_norm(x, x.shape[-1:], weight, bias, _NORM_EPS) for x in found]
        prefix = 1 + self.config.num_registers
        return [Tokens(x[:, 0], x[:, 1:prefix], x[:, prefix:]) for x in found]

    def settle(
        self, images: Iterable[Tensor], layers: Sequence[int] | None = None, *, folder: Path | None = None
    ) -> "OnnxEngine":
        """Return this engine: it has nothing to decide."""
        return self

    def _run(self, session: Any, names: Sequence[str], batch: Tensor) -> list[np.ndarray]:
        pixels = self._pixels(batch)
        try:
            return session.run(names, {"images": pixels})
        except self._errors as error:
            raise ExportError(f"{self.path} fails on images {pixels.shape}: {error}; export the model again") from error

    def _pixels(self, batch: Tensor) -> np.ndarray:
        _, channels, height, width = batch.shape
        if channels != self.config.channels:
            raise FovealError(f"images have {channels} channels; this backbone takes {self.config.channels}")
        for name, size in (("image height", height), ("image width", width)):
            if size % self.config.patch_size or size == 0:
                raise FovealError(multiple_of_patch(name, size, self.config.patch_size) + " (resize or pad first)")
        return batch.detach().to("cpu", torch.float32).contiguous().numpy()

    def _open(self, model: str | bytes) -> Any:
        settings = self._runtime.SessionOptions()
        settings.intra_op_num_threads = self._num_threads
        settings.log_severity_level = 4  # errors are raised
        # Where weights lie beside a graph that comes as bytes.
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self.path.parent))
        try:
            return self._runtime.InferenceSession(model, settings, providers=self._providers)
        except self._errors as error:
            raise ExportError(f"{self.path} cannot be run by ONNX Runtime: {error}; export the model again") from error

    def _open_inside(self, layers: Sequence[int]) -> tuple[Any, Tensor, Tensor]:
        """Return a session that gives the tokens after blocks, and weight and bias of the final norm."""
        (onnx, numpy_helper) = require("onnx", "onnx.numpy_helper")
        model = onnx.load(self.path, load_external_data=False)
        value = onnx.helper.make_tensor_value_info
        del model.graph.output[:]
        model.graph.output.extend(value(f"blocks.{number}", onnx.TensorProto.FLOAT, None) for number in layers)
        norm = {one.name: one for one in model.graph.initializer if one.name in ("norm.weight", "norm.bias")}
        weights = [
            torch.from_numpy(numpy_helper.to_array(norm[name], base_dir=str(self.path.parent)).copy())
            for name in ("norm.weight", "norm.bias")
        ]
        return self._open(model.SerializeToString()), weights[0], weights[1]
