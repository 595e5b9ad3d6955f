"""Forward passes against outputs stored from the reference implementation (float32, one thread)."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import Tokens, VisionTransformer

TOLERANCE = 2e-5  # stated by the reference numbers: values are of order 1, float32 sums in another order
SETTINGS: dict[str, dict[str, object]] = {
    "backbone_mlp": {},
    "backbone_swiglu_registers": {"ffn": "swiglu", "num_registers": 4},
}
SIZES = ["98x98", "126x84", "140x252", "224x224", "518x518", "532x546"]


@pytest.fixture(scope="module", params=sorted(SETTINGS))
def stored(request: pytest.FixtureRequest, golden: Path) -> tuple[VisionTransformer, dict[str, Tensor]]:
    tensors = load_file(golden / f"{request.param}.safetensors")
    network = VisionTransformer(backbone_config("vit_nano", depth=4, **SETTINGS[request.param])).eval()
    prefix = "weights."
    weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    network.load_state_dict({re.sub(r"^blocks\.\d+\.", "blocks.", name): tensor for name, tensor in weights.items()})
    return network, tensors


def _assert_close(found: Tokens, tensors: dict[str, Tensor], prefix: str) -> None:
    names = [name for name in ("cls", "registers", "patches") if f"{prefix}.{name}" in tensors]
    assert {"cls", "patches"} <= set(names)
    for name in names:
        torch.testing.assert_close(getattr(found, name), tensors[f"{prefix}.{name}"], atol=TOLERANCE, rtol=0)


def _images(tensors: dict[str, Tensor], size: str) -> Tensor:
    return tensors[f"{size}.input_div7"].repeat_interleave(7, dim=2).repeat_interleave(7, dim=3)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_tokens_equal_the_reference(stored: tuple[VisionTransformer, dict[str, Tensor]], size: str) -> None:
    network, tensors = stored
    tokens = network(_images(tensors, size))
    _assert_close(tokens, tensors, size)
    assert tokens.registers.shape[1] == network.config.num_registers


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("size", ["98x98", "126x84", "140x252"])
@torch.no_grad()
def test_intermediate_layers_equal_the_reference(
    stored: tuple[VisionTransformer, dict[str, Tensor]], size: str, norm: bool
) -> None:
    network, tensors = stored
    kind = "norm" if norm else "raw"
    layers = sorted({int(m[1]) for name in tensors if (m := re.match(rf"{size}\.{kind}_block(\d+)\.cls", name))})
    assert len(layers) >= 2
    found = network.intermediate(_images(tensors, size), layers, norm=norm)
    for layer, tokens in zip(layers, found, strict=True):
        _assert_close(tokens, tensors, f"{size}.{kind}_block{layer}")


@torch.no_grad()
def test_masked_forward_equals_the_reference(stored: tuple[VisionTransformer, dict[str, Tensor]]) -> None:
    network, tensors = stored
    assert tensors["masked.mask"].any()
    assert not tensors["masked.mask"].all()
    _assert_close(network(tensors["masked.input"], tensors["masked.mask"]), tensors, "masked")
