"""What this computer's processor can do, as far as engines are chosen by it."""

import platform
from pathlib import Path
from typing import NamedTuple

import torch

# As torch.cpu.get_capabilities names them.
_BF16 = ("avx512_bf16", "amx_bf16")
_BF16_OF_ARM = ("bf16",)  # PyTorch uses it; no candidate is chosen by it
_FP16 = ("avx512_fp16", "amx_fp16")
_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")


class CPU(NamedTuple):
    """A processor, by its name and by the types whose matrix products it has instructions for.

    Without VNNI or AMX, int8 products are put together from wider instructions: measured on AVX2, a network takes as
    long in int8 as in fp32, and the weights have to keep to `max_integer` 63, or sums of two products overflow 16 bits.
    """

    name: str
    bf16: bool = False
    fp16: bool = False
    int8: bool = False
    max_integer: int = 127


def this_cpu() -> CPU:
    """Return the processor that this process runs on; instructions that are not those of x86 count for nothing."""
    found = torch.cpu.get_capabilities()
    bf16, fp16, int8 = (any(found.get(name) for name in names) for names in (_BF16, _FP16, _INT8))
    return CPU(_name(), bf16=bf16, fp16=fp16, int8=int8)


def has_bf16() -> bool:
    """Say whether PyTorch has bf16 instructions on this computer's CPU; without, it emulates them."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in (*_BF16, *_BF16_OF_ARM))


def _name() -> str:
    """Return the processor's name with family and model, which tell apart what vendors call the same."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass  # not Linux
    name = fields.get("model name") or platform.processor() or platform.machine()
    return " ".join([name, *(f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields)])
