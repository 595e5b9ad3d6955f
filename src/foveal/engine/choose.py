"""Which engines come into question for a backbone on this computer, and in which order.

Candidates, the fastest first (each only where the hardware has instructions for it):

    CPU          openvino bf16, openvino fp16, openvino fp32, torch fp32
    CPU, fast    openvino int8, then the same
    GPU          torch fp16, torch bf16, torch fp32

The order is fixed by the processor and not by timing on the spot, so that the same machine takes the same path every
time; the measurements it rests on are in docs/engines.md. Which candidate is taken, the accuracy gate decides (`auto`).
"""

import logging
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import VisionTransformer
from foveal.engine import gate, openvino_graph
from foveal.engine.auto import AutoEngine, Candidate, Refused
from foveal.engine.base import Engine, Precision
from foveal.engine.calibrate import Calibration, calibrate
from foveal.engine.cpu import CPU, this_cpu
from foveal.engine.device import open_device
from foveal.engine.openvino_engine import OpenVINOEngine, OpenVINOPrecision, version
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import FovealError, nearest
from foveal.files import cache_folder

logger = logging.getLogger(__name__)

EngineName = Literal["auto", "torch", "openvino"]
# Below this, compiling (about 1 s) and comparing cost more than they bring on the first thousand images: an image of
# 1 GFLOP takes 10 ms at 100 GFLOP/s, of which fp32 OpenVINO saves a tenth and bf16 more than half.
MIN_GFLOP = 1.0


def open_engine(
    backbone: VisionTransformer,
    *,
    engine: EngineName = "auto",
    precision: Precision | None = None,
    fast: bool = False,
    device: str | torch.device | None = None,
    image_size: int | None = None,
    cpu: CPU | None = None,
) -> Engine:
    """Return the engine for a backbone.

    - "auto" takes the first candidate that passes the gate: cosine at least 0.9999 to fp32 PyTorch, with `fast` 0.999.
      Networks below 1 GFLOP an image stay on fp32 PyTorch.
    - "openvino" is the same among OpenVINO's precisions.
    - "torch" is PyTorch at the given precision, fp32 if none is given, as it is: no gate is run.

    Args:
        backbone: the network; it is moved to the device.
        engine: see above.
        precision: only this one is taken; where the gate refuses it, encoding raises an error.
        fast: also int8, at the wider limit.
        device: a torch device; None takes the GPU where there is one, else the CPU.
        image_size: the usual side in pixels, by which small networks are told; None takes that of the backbone.
        cpu: the processor; None asks the operating system.

    Raises:
        FovealError: an unknown engine or precision, OpenVINO missing or asked for on a GPU, a precision the processor
            has no instructions for, or options that exclude each other.
    """
    device = check_options(engine=engine, precision=precision, fast=fast, device=device)
    if engine == "torch":
        return TorchEngine(backbone, precision=precision or "fp32", device=device)
    gflop = gflop_of(backbone.config, image_size or backbone.config.image_size)
    if engine == "auto" and precision is None and gflop < MIN_GFLOP:
        logger.info("engine: torch fp32, for a small network (%.2f GFLOP an image)", gflop)
        return TorchEngine(backbone, device=device)
    maker = _Maker(TorchEngine(backbone, device=device), cpu or this_cpu(), fast=fast)
    return AutoEngine(
        backbone,
        candidates=maker.candidates(engine, precision),
        reference=maker.reference,
        limit=maker.limit,
        hint=maker.hint,
    )


def check_options(
    *, engine: str = "auto", precision: str | None = None, fast: bool = False, device: str | torch.device | None = None
) -> torch.device:
    """Refuse what no model could be opened with, before one is read; see `open_engine`.

    Returns:
        The device.
    """
    _check_choice("engine", engine, get_args(EngineName))
    if precision is not None:
        _check_choice("precision", precision, get_args(Precision))
    if fast and (precision or engine == "torch"):
        other = f"precision '{precision}'" if precision else "engine 'torch'"
        raise FovealError(f"fast chooses among engines and precisions, and {other} leaves no choice; drop one of them")
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if engine == "openvino":
        if str(wanted).partition(":")[0] != "cpu":
            raise FovealError(
                f"engine 'openvino' runs on the CPU, not on '{wanted}'; use device 'cpu' or engine 'torch'"
            )
        openvino_graph.import_openvino(instead=", or use engine 'torch'")
    return open_device(wanted)


def gflop_of(config: BackboneConfig, image_size: int) -> float:
    """Return the operations (a multiplication and an addition are two) of one square image, in 10^9."""
    patches = (image_size // config.patch_size) ** 2
    tokens = patches + 1 + config.num_registers
    matrices = 3 if config.ffn == "swiglu" else 2
    weights = 4 * config.width**2 + matrices * config.width * config.ffn_hidden
    blocks = config.depth * (2 * tokens * weights + 4 * tokens**2 * config.width)
    return (blocks + 2 * patches * config.channels * config.patch_size**2 * config.width) / 1e9


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise FovealError(f"{name} '{value}' is not known; choose {', '.join(allowed)}{nearest(value, allowed)}")


class _Maker:
    """Makes the candidates of one backbone."""

    def __init__(self, reference: TorchEngine, cpu: CPU, *, fast: bool) -> None:
        self.reference = reference
        self._openvinos: dict[tuple[str, str], OpenVINOEngine] = {}
        self.cpu = cpu
        self.fast = fast
        self.limit = gate.FAST_LIMIT if fast else gate.LIMIT
        self.on_cpu = reference.device.type == "cpu"
        self.has_openvino = self.on_cpu and openvino_graph.is_installed()
        self.hint = ""
        if self.on_cpu and not self.has_openvino:
            self.hint = "; OpenVINO would be faster: pip install 'foveal[cpu]'"
        elif fast and self.on_cpu and not cpu.int8:
            self.hint = "; int8 is not faster on a processor without VNNI or AMX"

    def candidates(self, engine: EngineName, precision: Precision | None) -> list[Candidate]:
        """Return what comes into question, in order.

        Raises:
            FovealError: the processor cannot run the precision in OpenVINO.
        """
        found: list[Candidate] = []
        openvino = [name for name in ("bf16", "fp16") if getattr(self.cpu, name)] + ["fp32"]
        if self.has_openvino:
            if self.fast and self.cpu.int8:
                found.append(self._int8("bf16" if self.cpu.bf16 else "fp32"))
            found += [self._openvino(name) for name in openvino]  # type: ignore[arg-type]
        if engine == "auto":
            reduced: list[Precision] = ["bf16", "fp16"] if self.on_cpu else ["fp16", "bf16"]
            found += [self._torch(name) for name in reduced if not self.on_cpu or name == precision]
            found.append(self._torch("fp32"))
        found = [candidate for candidate in found if precision in (None, candidate.precision)]
        if not found:
            raise FovealError(
                f"this processor has no instructions for openvino {precision}; choose {', '.join(openvino)}"
            )
        return found

    def _torch(self, precision: Precision) -> Candidate:
        device = self.reference.device
        engine = TorchEngine(self.reference.backbone, precision=precision, device=device)
        where = self.cpu.name if self.on_cpu else torch.cuda.get_device_name(device)
        return Candidate("torch", precision, where, lambda *_: engine, exact=precision == "fp32")

    def _openvino(self, precision: OpenVINOPrecision) -> Candidate:
        return Candidate("openvino", precision, self.cpu.name, lambda *_: self._opened(precision))

    def _int8(self, rest: OpenVINOPrecision) -> Candidate:
        return Candidate(
            "openvino", "int8", self.cpu.name, lambda images, folder: self._calibrated(images, folder, rest)
        )

    def _opened(self, precision: OpenVINOPrecision, int8: Calibration | None = None) -> OpenVINOEngine:
        """Return an engine, the same one each time: a compiled graph holds a copy of the weights."""
        key = (precision, int8.name if int8 else "")
        if key not in self._openvinos:
            self._openvinos[key] = OpenVINOEngine(
                self.reference.backbone,
                precision=precision,
                quantised=int8.layers if int8 else None,
                calibration=key[1],
            )
        return self._openvinos[key]

    def _calibrated(self, images: Tensor, folder: Path | None, rest: OpenVINOPrecision) -> OpenVINOEngine:
        """Return the int8 engine as a store has it, else from the cache, else calibrated now."""
        backbone = self.reference.backbone
        found = calibrate(
            backbone,
            images,
            folders=[place / "int8" for place in (folder, cache_folder()) if place],
            key={"model": self.reference.identity, "cpu": self.cpu.name, "rest": rest, "openvino": version()},
            run=lambda layers: OpenVINOEngine(backbone, precision=rest, quantised=layers),
            reference=self.reference,
            limit=self.limit,
            max_integer=self.cpu.max_integer,
        )
        if isinstance(found, str):
            raise Refused(found)
        return self._opened(rest, found)
