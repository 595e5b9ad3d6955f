"""What Triton is told about a GPU: batches, waiting time, instances; computed from operations, not measured.

    images/s = efficiency * peak / operations of an image

with the peak of the tensor cores in the precision that runs (dense, NVIDIA's data sheets), and `EFFICIENCY`, the share
of it that a vision transformer is assumed to reach. Measure with `perf_analyzer` before buying anything.
"""

from dataclasses import dataclass

from foveal.backbone.variants import BackboneConfig
from foveal.engine.choose import gflop_of
from foveal.errors import FovealError, nearest

EFFICIENCY = 0.4  # assumed; large matrix products of vision transformers commonly reach 0.3 to 0.5
BATCH_S = 0.025  # a batch may take this long to compute
MAX_BATCH = 64  # beyond it throughput hardly grows, and a batch of 224-pixel images is 39 MB to copy
QUEUED_BATCHES = 8  # what waits beyond that is refused at once, so that the client can turn elsewhere


@dataclass(frozen=True)
class Device:
    """What runs the backbone.

    Attributes:
        title: for comments.
        kind: Triton's name of the kind.
        instances: of the backbone: two, so that one copies and is queued while the other computes.
        preprocessors: processes that decode, about one a core of the machines that carry such a GPU.
        tf32_tflops: dense peak in TF32, which ONNX Runtime takes for float32 on these GPUs, 10^12 operations a second.
        fp16_tflops: dense peak in fp16, that in bf16 too, which TensorRT takes.
        memory_gb: for weights and activations.
    """

    title: str
    kind: str
    instances: int
    preprocessors: int
    tf32_tflops: float = 0.0
    fp16_tflops: float = 0.0
    memory_gb: int = 0


# Source: NVIDIA L4 and L40S data sheets; theirs with sparsity are twice these.
DEVICES = {
    "none": Device("CPU", "KIND_CPU", 1, 2),
    "l4": Device("NVIDIA L4", "KIND_GPU", 2, 8, tf32_tflops=60, fp16_tflops=121, memory_gb=24),
    "l40s": Device("NVIDIA L40S", "KIND_GPU", 2, 16, tf32_tflops=183, fp16_tflops=362, memory_gb=48),
}


@dataclass(frozen=True)
class Batching:
    """How Triton joins requests.

    Attributes:
        preferred: batch sizes that are run at once when so many images wait, ascending.
        max_batch: the largest.
        delay_us: how long the first image waits for others, microseconds.
        images_per_s: computed for one GPU; None on a CPU.
    """

    preferred: tuple[int, ...]
    max_batch: int
    delay_us: int
    images_per_s: float | None


def device_named(name: str) -> Device:
    """Return a device of the table; FovealError names the known ones."""
    if name not in DEVICES:
        raise FovealError(f"--gpu '{name}' is not known; choose {', '.join(DEVICES)}{nearest(name, DEVICES)}")
    return DEVICES[name]


def images_per_s(config: BackboneConfig, image_size: int, device: Device, *, half: bool) -> float:
    """Return how many square images one GPU computes in a second, by the formula above.

    Args:
        config: of the backbone.
        image_size: side, pixels.
        device: a GPU.
        half: bf16 or fp16 (TensorRT); False is TF32 (ONNX Runtime).
    """
    peak = device.fp16_tflops if half else device.tf32_tflops
    return EFFICIENCY * peak * 1000 / gflop_of(config, image_size)


def batching(config: BackboneConfig, image_size: int, device: Device, *, half: bool) -> Batching:
    """Return preferred batches and waiting time for a backbone.

    The largest batch is the power of two that takes at most `BATCH_S` to compute; the waiting time is a quarter of what
    it takes, and at least 0.1 ms. On a CPU, where a batch brings little over single images, it is 8 and 2 ms.
    """
    if device.kind == "KIND_CPU":
        return Batching((4, 8), 8, 2000, None)
    rate = images_per_s(config, image_size, device, half=half)
    largest = min(MAX_BATCH, 1 << max(int(rate * BATCH_S), 1).bit_length() - 1)
    preferred = tuple(sorted({max(largest // 2, 1), largest}))
    delay_us = max(100, round(largest / rate / 4 * 1e6 / 100) * 100)
    return Batching(preferred, max(largest, 8), delay_us, rate)
