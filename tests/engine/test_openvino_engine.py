import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from foveal.engine.openvino_engine import OpenVINOEngine
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import FovealError

pytest.importorskip("openvino", reason="OpenVINO is not installed (extra cpu)")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_registers": 2},
        {"ffn": "swiglu", "channels": 5, "patch_size": 7},
    ],
)
def test_every_size_equals_torch(network: Callable, pictures: Callable, changes: dict) -> None:
    backbone = network(depth=2, **changes)
    ours, exact = OpenVINOEngine(backbone), TorchEngine(backbone)
    for height, width in ((56, 56), (28, 42), (70, 14)):
        batch = pictures(3, height, width, backbone.config.channels)
        for a, b in zip(ours.encode(batch), exact.encode(batch), strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)  # fp32 sums in another order


def test_layers_are_those_asked_for_and_outputs_are_kept(network: Callable, pictures: Callable) -> None:
    backbone, batch = network(), pictures(2)
    engine = OpenVINOEngine(backbone)
    found = engine.intermediate(batch, [2, 0], norm=False)
    engine.intermediate(0 * batch, [2, 0], norm=False)
    for ours, exact in zip(found, TorchEngine(backbone).intermediate(batch, [2, 0], norm=False), strict=True):
        torch.testing.assert_close(ours.patches, exact.patches, atol=2e-5, rtol=2e-5)
    with pytest.raises(FovealError, match=r"layers=\[3\] of a backbone with 3 blocks; choose among 0..2"):
        engine.intermediate(batch, [3])
    with pytest.raises(FovealError, match="image width=55 is not a multiple of patch_size=14"):
        engine.encode(batch[..., :55])


def test_import_does_not_load_the_usage_reports() -> None:
    code = (
        "import sys; from foveal.engine.openvino_graph import import_openvino; import_openvino();"
        "from openvino.tools.ovc import telemetry_utils as t; print(t.tm.__name__, 'openvino_telemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"]


def test_attention_is_that_of_torch(network: Callable, pictures: Callable) -> None:
    backbone, batch = network(), pictures(2)
    found = OpenVINOEngine(backbone).attention(batch, layer=1, queries=[0, 3])
    assert torch.equal(found, TorchEngine(backbone).attention(batch, layer=1, queries=[0, 3]))
