from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foveal.engine.calibrate import Calibration, calibrate, load_calibration, quantise_all, save_calibration, search
from foveal.engine.gate import Agreement, agreement
from foveal.engine.linears import linears_of
from foveal.engine.openvino_engine import OpenVINOEngine
from foveal.engine.quantise import mean_of_rows, quantise, quantise_plainly
from foveal.engine.torch_engine import TorchEngine


def _rows(outlier: float) -> torch.Tensor:
    rows = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
    rows[:, 7] *= outlier
    return rows


def _relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def test_outlier_channel_costs_plain_rounding_and_not_ours() -> None:
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    weight[:, 7] /= 100
    bias, x = torch.arange(5.0), _rows(100)
    exact = x @ weight.T + bias
    assert _relative_error(quantise_plainly(weight, bias, x).run(x, weight), exact) > 0.1
    assert _relative_error(quantise(weight, bias, x).run(x, weight), exact) < 0.02


def test_range_reaches_beyond_the_few_class_tokens_and_they_count_as_much_as_all_patches() -> None:
    weight, bias = torch.eye(3), torch.zeros(3)
    patches = 0.01 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    cls = torch.tensor([[1.0, 0.5, 0.8], [0.9, 0.6, 0.7]])
    unseen = torch.tensor([[1.4, 0.9, 0.3]])
    found = quantise(weight, bias, torch.cat([cls, patches]), num_prefix_rows=2)
    assert _relative_error(found.run(unseen, weight), unseen) < 0.01
    # Without knowing them, the 2 among 500 are clipped to what suits the others.
    blind = quantise(weight, bias, torch.cat([cls, patches]))
    assert _relative_error(blind.run(unseen, weight), unseen) > 0.2
    errors = torch.tensor([[4.0], [2.0], [1.0], [1.0], [1.0], [1.0]])
    assert mean_of_rows(errors, 2).item() == 2
    assert mean_of_rows(errors, 0).item() == pytest.approx(10 / 6)


def test_zero_stays_zero_and_weights_keep_to_their_bits() -> None:
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    found = quantise(weight, torch.zeros(5), _rows(1), max_integer=63)
    assert found.round_input(torch.zeros(1, 12)).abs().max() < 1e-6
    assert found.integer_weight(weight).abs().max() <= 63


def test_linears_carry_their_layer_scale(network: Callable) -> None:
    backbone = network()
    x = torch.randn(4, 48)
    _, proj, _, _ = linears_of(backbone, 1)
    expected = backbone.blocks[1].attn.proj(x) * backbone.blocks[1].ls1.gamma
    torch.testing.assert_close(x @ proj.weight.T + proj.bias, expected)
    assert proj.name == "blocks.1.attn.proj"


@pytest.mark.parametrize("good_from", [0, 3, 6])
def test_search_leaves_as_few_layers_in_float_as_suffice(good_from: int) -> None:
    names = [f"layer{i}" for i in range(12)]
    layer = quantise_plainly(torch.ones(1, 1), torch.zeros(1), torch.ones(2, 1))

    def measure(chosen: object) -> Agreement:
        num_float = 12 - len(chosen)  # type: ignore[arg-type]
        return Agreement(*[1.0 if num_float >= good_from else 0.9] * 4, 8)

    found = search(dict.fromkeys(names, layer), names, measure, limit=0.999)
    assert isinstance(found, Calibration)
    assert list(found.in_float) == names[:good_from]


def test_search_gives_up_where_half_in_float_is_not_enough() -> None:
    layer = quantise_plainly(torch.ones(1, 1), torch.zeros(1), torch.ones(2, 1))
    bad = Agreement(0.9, 0.9, 0.9, 0.9, 8)
    assert search({"a": layer, "b": layer}, ["a", "b"], lambda _: bad, limit=0.999) == bad


@pytest.mark.parametrize("changes", [{}, {"ffn": "swiglu"}, {"outliers": True}])
def test_int8_in_openvino_passes_also_with_planted_outliers(
    network: Callable, pictures: Callable, changes: dict
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed (extra cpu)")
    backbone, images = network(**changes), pictures(24)
    exact = [TorchEngine(backbone).encode(images[-8:])]
    # 63: also where two products are added in 16 bits
    layers, worst_first = quantise_all(backbone, images[:-8], max_integer=63)
    measured = agreement([OpenVINOEngine(backbone, quantised=layers).encode(images[-8:])], exact)
    assert sorted(layers) == sorted(worst_first)
    assert measured.passes(0.999)
    assert measured.cls_min < 0.9999999


def test_plain_int8_fails_the_gate_with_planted_outliers(network: Callable, pictures: Callable) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed (extra cpu)")
    backbone, images = network(outliers=True), pictures(24)
    plain = {}
    for number in range(len(backbone.blocks)):
        for layer in linears_of(backbone, number):
            seen: list[torch.Tensor] = []
            hook = layer.module.register_forward_hook(lambda _, args, __, seen=seen: seen.append(args[0].detach()))
            TorchEngine(backbone).encode(images[:-8])
            hook.remove()
            plain[layer.name] = quantise_plainly(layer.weight, layer.bias, seen[0], max_integer=63)
    exact = [TorchEngine(backbone).encode(images[-8:])]
    measured = agreement([OpenVINOEngine(backbone, quantised=plain).encode(images[-8:])], exact)
    assert not measured.passes(0.999)


def test_calibration_comes_back_to_the_bit_and_damage_is_seen(
    network: Callable, pictures: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone, images = network(depth=1), pictures(4)
    layers, worst_first = quantise_all(backbone, images, max_integer=63)
    made = Calibration(layers, worst_first[:1], Agreement(1, 1, 1, 1, 8))
    save_calibration(tmp_path / "int8", made, key={"weights": "a"})
    found = load_calibration(tmp_path / "int8", key={"weights": "a"})
    assert found is not None
    assert found.name == made.name
    assert found.layers["blocks.0.mlp.fc1"].low == layers["blocks.0.mlp.fc1"].low
    assert load_calibration(tmp_path / "int8", key={"weights": "b"}) is None
    # Another process that comes later takes what is there.
    late = Calibration(layers, worst_first[:2], Agreement(1, 1, 1, 1, 8))
    assert save_calibration(tmp_path / "int8", late, key={"weights": "a"}).in_float == worst_first[:1]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    file = tmp_path / "int8" / "layers.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert load_calibration(tmp_path / "int8", key={"weights": "a"}) is None
    assert "calibrating again" in caplog.text


def test_too_few_images_are_not_calibrated_on(network: Callable, pictures: Callable, tmp_path: Path) -> None:
    backbone = network(depth=1)
    engine = TorchEngine(backbone)
    found = calibrate(
        backbone,
        pictures(3),
        folders=[tmp_path],
        key={},
        run=lambda _: engine,
        reference=engine,
        limit=0.999,
        max_integer=63,
    )
    assert found == "calibrating takes at least 16 images, and 3 were given"
