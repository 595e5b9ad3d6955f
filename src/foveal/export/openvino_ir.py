"""The engine that runs an exported OpenVINO IR."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import Tokens, layer_numbers
from foveal.engine.openvino_graph import import_openvino
from foveal.export.card import ExportError
from foveal.export.graph_engine import GraphEngine

IR = "model.xml"


class IrEngine(GraphEngine):
    """Runs an IR of `foveal export openvino` on the CPU, in float32 whatever its weights are kept in.

    Args:
        source: the folder of an export, or its .xml file.
        num_threads: None is as many as PyTorch uses.

    Raises:
        ExportError: the file is none of ours or cannot be run.
        FovealError: OpenVINO is not installed.
    """

    def __init__(self, source: str | Path, *, num_threads: int | None = None) -> None:
        source = Path(source)
        path = source / IR if source.is_dir() else source
        openvino = import_openvino()
        if not path.is_file():
            raise ExportError(f"{path} does not exist; foveal export openvino writes it")
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": num_threads or torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            self._core = openvino.Core()
            model = self._core.read_model(path)
            self.metadata: dict[str, str] = json.loads(model.get_rt_info(["foveal"]).value)
            config = BackboneConfig.model_validate(json.loads(self.metadata["foveal.backbone"]))
            self._request = self._compiled(model)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ExportError(
                f"{path} is no IR of foveal export, or cannot be run ({error}); export it again"
            ) from error
        self._version = str(openvino.__version__).partition("-")[0]
        names = [one.any_name for one in model.outputs]
        super().__init__(path, config=config, identity=self.metadata["foveal.identity"], output_names=names)

    @property
    def description(self) -> dict[str, str]:
        """Return what a stamp says of this engine."""
        precision = self.metadata["foveal.precision"]
        return {"name": "openvino-ir", "precision": precision, "device": "cpu", "version": self._version}

    def infer(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """Return outputs of the graph, in the order of their names."""
        found = self._request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        # Copied: the memory of an output is used again by the next batch.
        return [found[name].copy() for name in names]

    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens after chosen blocks without the final norm, in ascending order.

        They are inside the graph under the names blocks.0 and so on, and are given out by one that is compiled anew.

        Raises:
            FovealError: with the norm, which the graph applies to the last ones only.
        """
        if norm:
            return super().intermediate(batch, layers)
        names = [f"blocks.{number}" for number in layer_numbers(layers, depth=self.config.depth)]
        try:
            model = self._core.read_model(self.path)
            model.add_outputs(names)
            found = self._compiled(model).infer({"images": self.pixels(batch)})
        except RuntimeError as error:
            raise ExportError(f"{self.path} does not give out {', '.join(names)}: {error}") from error
        prefix = 1 + self.config.num_registers
        arrays = [torch.from_numpy(found[i].copy()) for i in range(len(self.output_names), len(found))]
        return [Tokens(x[:, 0], x[:, 1:prefix], x[:, prefix:]) for x in arrays]

    def _compiled(self, model: Any) -> Any:
        """Return a request of a model made ready to run."""
        return self._core.compile_model(model, "CPU", self._settings).create_infer_request()
