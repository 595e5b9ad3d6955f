"""Which tensor of which module first stops being finite."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Finding:
    """A tensor that is not finite.

    Attributes:
        network: as it was named.
        module: dotted name in it; for gradients that of the parameter.
        kind: "weight", "input", "output" or "gradient".
        num_bad: how many of its numbers are NaN or infinite.
        num_all: of how many.
    """

    network: str
    module: str
    kind: str
    num_bad: int
    num_all: int

    def __str__(self) -> str:
        return f"{self.kind} of {self.network} {self.module}: {self.num_bad:,} of {self.num_all:,} numbers"


@contextmanager
def traced(networks: Mapping[str, nn.Module]) -> Iterator[list[Finding]]:
    """Collect what is not finite while the block runs, in the order in which it appears.

    First come weights. Then, as they are computed, inputs, outputs and gradients of parameters: each module and kind
    once. An input that is not finite where no output before it was comes out of functions between modules: that of the
    first block out of the patch embedding.

    Args:
        networks: name -> network.
    """
    findings: list[Finding] = []
    seen: set[tuple[str, str, str]] = set()

    def look(network: str, module: str, kind: str, value: Any) -> None:
        for tensor in value if isinstance(value, tuple | list) else [value]:
            key = (network, module, kind)
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or key in seen:
                continue
            bad = tensor.numel() - int(torch.isfinite(tensor.detach()).sum())  # detached: nothing is kept for gradients
            if bad:
                seen.add(key)
                findings.append(Finding(network, module, kind, bad, tensor.numel()))

    handles = []
    for network, root in networks.items():
        for name, parameter in root.named_parameters():
            look(network, name, "weight", parameter.detach())
            if parameter.requires_grad:
                handles.append(
                    parameter.register_post_accumulate_grad_hook(
                        lambda p, network=network, name=name: look(network, name, "gradient", p.grad)
                    )
                )
        for name, module in root.named_modules():
            handles.append(module.register_forward_pre_hook(partial(_before, look, network, name)))
            handles.append(module.register_forward_hook(partial(_after, look, network, name)))
    try:
        yield findings
    finally:
        for handle in handles:
            handle.remove()


def _before(look: Any, network: str, name: str, _module: nn.Module, inputs: Any) -> None:
    look(network, name, "input", inputs)


def _after(look: Any, network: str, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
    look(network, name, "output", output)
