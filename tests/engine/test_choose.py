import logging
from collections.abc import Callable

import pytest
import torch

from foveal.backbone.variants import backbone_config
from foveal.engine.auto import AutoEngine, Candidate
from foveal.engine.choose import gflop_of, hash_of, open_engine
from foveal.engine.cpu import CPU, has_bf16, this_cpu
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import FovealError

AVX2 = CPU("plain")


def _auto(backbone: torch.nn.Module, others: dict[str, torch.nn.Module]) -> AutoEngine:
    """An engine that prefers other networks to the exact one: what they get wrong is known."""
    reference = TorchEngine(backbone)  # type: ignore[arg-type]
    engines = {name: TorchEngine(other) for name, other in others.items()}  # type: ignore[arg-type]
    candidates = [Candidate("torch", name, "cpu", lambda _, e=e: e) for name, e in engines.items()]
    candidates.append(Candidate("torch", "fp32", "cpu", lambda _: reference, exact=True))
    return AutoEngine(backbone, candidates=candidates, reference=reference, limit=0.9999, weights="w")


def test_candidate_that_disagrees_is_refused_and_said(
    network: Callable, pictures: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    backbone, wrong = network(), network()
    with torch.no_grad():
        wrong.blocks[0].mlp.fc1.weight.add_(0.05)
    engine = _auto(backbone, {"wrong": wrong})
    with caplog.at_level(logging.INFO, logger="foveal"):
        found = engine.encode(pictures(9))
    assert torch.equal(found.cls, TorchEngine(backbone).encode(pictures(9)).cls)
    assert "torch wrong refused: cosine min 0." in caplog.text
    assert "on 8 images, the limit is 0.9999; engine: torch fp32" in caplog.text


def test_first_that_agrees_is_taken_and_remembered(
    network: Callable, pictures: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    backbone, near, wrong = network(), network(), network()
    with torch.no_grad():
        near.blocks[0].mlp.fc1.weight.add_(1e-6)
        wrong.blocks[0].mlp.fc1.weight.add_(0.05)
    engine = _auto(backbone, {"near": near})
    with pytest.raises(FovealError, match=r"call settle\(images\) first"):
        _ = engine.description
    assert not engine.is_settled()
    engine.settle(pictures(8))
    assert engine.description == TorchEngine(near).description
    assert torch.equal(engine.encode(pictures(2)).cls, TorchEngine(near).encode(pictures(2)).cls)
    # The same conditions are not measured again, not even by a new engine: the verdict is in the cache.
    again = _auto(backbone, {"near": wrong})
    with caplog.at_level(logging.INFO, logger="foveal"):
        again.settle(pictures(8))
    assert "engine: torch near, cosine min 0.99999" in caplog.text


def test_candidate_that_cannot_run_is_passed_over_and_said(
    network: Callable, pictures: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = network()
    engine = _auto(backbone, {"narrow": network(width=24, num_heads=3)})
    engine._candidates[0].open(pictures(1)).backbone.norm = torch.nn.LayerNorm(7)  # type: ignore[attr-defined]
    with caplog.at_level(logging.INFO, logger="foveal"):
        engine.settle(pictures(2))
    assert "torch narrow failed: " in caplog.text
    assert engine.description["precision"] == "fp32"


def test_nothing_left_is_an_error(network: Callable, pictures: Callable) -> None:
    backbone, wrong = network(), network()
    with torch.no_grad():
        wrong.blocks[0].mlp.fc1.weight.add_(0.05)
    engine = AutoEngine(
        backbone,
        candidates=[Candidate("torch", "odd", "cpu", lambda _: TorchEngine(wrong))],
        reference=TorchEngine(backbone),
        limit=0.9999,
        weights="w",
    )
    with pytest.raises(FovealError, match="no engine is left: torch odd refused: cosine min"):
        engine.encode(pictures(2))


def test_small_networks_stay_on_torch(network: Callable) -> None:
    assert isinstance(open_engine(network(), device="cpu", fast=True), TorchEngine)


def test_gflop_of_vits_is_the_known_number() -> None:
    assert gflop_of(backbone_config("vits"), 224) == pytest.approx(12.25, rel=0.01)


def test_hash_changes_with_one_weight(network: Callable) -> None:
    backbone = network()
    before = hash_of(backbone)
    with torch.no_grad():
        backbone.norm.bias[0] += 1
    assert hash_of(backbone) != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "onnx"}, "engine='onnx' is not known; choose auto, torch, openvino"),
        ({"precision": "int4"}, "precision='int4' is not known; choose fp32, bf16, fp16"),
        ({"engine": "torch", "fast": True}, "engine='torch' leaves no choice"),
        ({"precision": "bf16", "fast": True}, "precision='bf16' leaves no choice"),
        ({"engine": "openvino", "device": "meta"}, "engine 'openvino' runs on the CPU, not on 'meta'"),
    ],
)
def test_options_that_do_not_fit_are_named(network: Callable, options: dict, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        open_engine(network(), **({"device": "cpu"} | options))


def test_openvino_refuses_what_the_processor_lacks(network: Callable) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed (extra cpu)")
    with pytest.raises(FovealError, match="no instructions for openvino bf16; choose fp32"):
        open_engine(network(), engine="openvino", precision="bf16", device="cpu", cpu=AVX2)


def test_fast_takes_int8_where_the_processor_has_it(
    network: Callable, pictures: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed (extra cpu)")
    backbone = network(depth=2)
    # A processor whose instructions are known to be there: fp32 beside int8.
    options = {"engine": "openvino", "fast": True, "device": "cpu", "cpu": CPU("new", int8=True)}
    engine = open_engine(backbone, **options)
    with caplog.at_level(logging.INFO, logger="foveal"):
        engine.settle(pictures(24))
        description = engine.description
        assert description["name"] == "openvino"
        if description["precision"] == "int8":  # else sums of products overflow 16 bits here, and the gate has seen it
            again = open_engine(backbone, **options)
            again.settle(pictures(3))
            assert again.description == description
        else:
            assert "openvino int8 refused" in caplog.text
    assert caplog.text.count("calibrating int8 on 16 images") == 1


def test_attention_is_that_of_the_reference_before_and_after_a_choice(network: Callable, pictures: Callable) -> None:
    backbone, other = network(), network()
    with torch.no_grad():
        other.blocks[0].attn.qkv.weight.mul_(1.000001)
    engine, batch = _auto(backbone, {"other": other}), pictures(2)
    expected = TorchEngine(backbone).attention(batch, layer=0, queries=[0])
    assert torch.equal(engine.attention(batch, layer=0, queries=[0]), expected)
    engine.settle(batch)
    assert engine.description["precision"] == "fp32"
    assert torch.equal(engine.attention(batch, layer=0, queries=[0]), expected)


@pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16", "bf16"])
def test_bf16_instructions_are_known_in_one_place(instruction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True})
    assert has_bf16()
    assert this_cpu().bf16 == (instruction != "bf16")  # candidates are chosen by those of x86
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: False})
    assert not has_bf16()
