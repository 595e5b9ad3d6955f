import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foveal.backbone.variants import backbone_config
from foveal.engine.auto import AutoEngine, Candidate
from foveal.engine.choose import gflop_of, open_engine
from foveal.engine.cpu import CPU, has_bf16, this_cpu
from foveal.engine.identity import identity_of
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import FovealError

AVX2 = CPU("plain")


def _auto(backbone: torch.nn.Module, others: dict[str, torch.nn.Module]) -> AutoEngine:
    """An engine that prefers other networks to the exact one: what they get wrong is known."""
    reference = TorchEngine(backbone)  # type: ignore[arg-type]
    engines = {name: TorchEngine(other) for name, other in others.items()}  # type: ignore[arg-type]
    candidates = [Candidate("torch", name, "cpu", lambda *_, e=e: e) for name, e in engines.items()]
    candidates.append(Candidate("torch", "fp32", "cpu", lambda *_: reference, exact=True))
    return AutoEngine(backbone, candidates=candidates, reference=reference, limit=0.9999)


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
    assert engine.settle([pictures(8)]).description == TorchEngine(near).description
    assert engine.description == TorchEngine(near).description
    assert torch.equal(engine.encode(pictures(2)).cls, TorchEngine(near).encode(pictures(2)).cls)
    # The same conditions are not measured again, not even by a new engine: the verdict is in the cache.
    again = _auto(backbone, {"near": wrong})
    with caplog.at_level(logging.INFO, logger="foveal"):
        again.settle([pictures(8)])
    assert "engine: torch near, cosine min 0.99999" in caplog.text


def test_candidate_that_cannot_run_is_passed_over_and_said(
    network: Callable, pictures: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = network()
    engine = _auto(backbone, {"narrow": network(width=24, num_heads=3)})
    engine._candidates[0].open(pictures(1), None).backbone.norm = torch.nn.LayerNorm(7)  # type: ignore[attr-defined]
    with caplog.at_level(logging.INFO, logger="foveal"):
        engine.settle([pictures(2)])
    assert "torch narrow failed: " in caplog.text
    assert engine.description["precision"] == "fp32"


def test_nothing_left_is_an_error(network: Callable, pictures: Callable) -> None:
    backbone, wrong = network(), network()
    with torch.no_grad():
        wrong.blocks[0].mlp.fc1.weight.add_(0.05)
    engine = AutoEngine(
        backbone,
        candidates=[Candidate("torch", "odd", "cpu", lambda *_: TorchEngine(wrong))],
        reference=TorchEngine(backbone),
        limit=0.9999,
    )
    with pytest.raises(FovealError, match="no engine is left: torch odd refused: cosine min"):
        engine.encode(pictures(2))


def test_small_networks_stay_on_torch(network: Callable) -> None:
    assert isinstance(open_engine(network(), device="cpu", fast=True), TorchEngine)


def test_gflop_of_vits_is_the_known_number() -> None:
    assert gflop_of(backbone_config("vits"), 224) == pytest.approx(12.25, rel=0.01)


def test_identity_changes_with_one_weight_and_with_the_heads(network: Callable) -> None:
    backbone = network()
    before = identity_of(backbone, backbone.config)
    assert identity_of(network(), backbone.config) == before
    assert identity_of(backbone, backbone.config.model_copy(update={"num_heads": 1})) != before
    with torch.no_grad():
        backbone.norm.bias[0] += 1
    assert identity_of(backbone, backbone.config) != before


def test_error_without_text_is_named_by_its_type(
    network: Callable, pictures: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> TorchEngine:
        raise RuntimeError

    backbone = network()
    reference = TorchEngine(backbone)
    candidates = [
        Candidate("torch", "odd", "cpu", fails),
        Candidate("torch", "fp32", "cpu", lambda *_: reference, exact=True),
    ]
    engine = AutoEngine(backbone, candidates=candidates, reference=reference, limit=0.9999)
    with caplog.at_level(logging.INFO, logger="foveal"):
        assert engine.settle([pictures(2)]) is reference
    assert "torch odd failed: RuntimeError; engine: torch fp32" in caplog.text


def test_candidate_has_to_agree_at_every_size_and_then_serves_all(network: Callable, pictures: Callable) -> None:
    backbone, small_only = network(), network()
    original = small_only.position

    def position(grid_h: int, grid_w: int) -> tuple[torch.Tensor, torch.Tensor]:
        cls, patches = original(grid_h, grid_w)
        return cls, patches.flip(1) if grid_h * grid_w > 16 else patches

    small_only.position = position  # type: ignore[method-assign]
    assert _auto(backbone, {"small": small_only}).settle([pictures(3)]).backbone is small_only  # type: ignore[attr-defined]
    engine = _auto(backbone, {"small": small_only})
    assert engine.settle([pictures(3), pictures(1, 70, 56)]).backbone is backbone  # type: ignore[attr-defined]
    assert torch.equal(engine.encode(pictures(3)).cls, TorchEngine(backbone).encode(pictures(3)).cls)


def test_store_keeps_its_choice_whatever_came_before_or_became_of_the_cache(
    network: Callable, pictures: Callable, home: Path, tmp_path: Path
) -> None:
    backbone, near, wrong = network(), network(), network()
    with torch.no_grad():
        near.blocks[0].mlp.fc1.weight.add_(1e-6)
        wrong.blocks[0].mlp.fc1.weight.add_(0.05)
    begun = _auto(backbone, {"near": near}).settle([pictures(8)], folder=tmp_path / "engine")
    assert begun.backbone is near  # type: ignore[attr-defined]
    shutil.rmtree(home)
    engine = _auto(backbone, {"near": wrong})
    assert engine.settle([pictures(8)]).backbone is backbone  # type: ignore[attr-defined]  # refused now
    assert engine.settle([pictures(8)], folder=tmp_path / "engine").backbone is wrong  # type: ignore[attr-defined]


def test_description_names_every_engine_that_was_chosen(network: Callable, pictures: Callable) -> None:
    backbone = network()
    engine = AutoEngine(
        backbone,
        candidates=[Candidate("torch", "bf16", "cpu", lambda *_: TorchEngine(backbone, precision="bf16"))],
        reference=TorchEngine(backbone),
        limit=0.9,
    )
    engine.settle([pictures(2)])
    engine._candidates = [Candidate("torch", "fp32", "cpu", lambda *_: TorchEngine(backbone), exact=True)]
    engine.settle([pictures(2)])
    assert engine.description["precision"] == "bf16"  # the choice for these blocks stands
    engine.settle([pictures(2)], [0])
    assert engine.description["precision"] == "bf16, fp32"
    assert engine.description["device"] == "cpu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "onnx"}, "engine 'onnx' is not known; choose auto, torch, openvino"),
        ({"precision": "int4"}, "precision 'int4' is not known; choose fp32, bf16, fp16"),
        ({"engine": "torch", "fast": True}, "engine 'torch' leaves no choice"),
        ({"precision": "bf16", "fast": True}, "precision 'bf16' leaves no choice"),
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
    network: Callable, pictures: Callable, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed (extra cpu)")
    backbone = network(depth=2)
    # The instructions need not be there: weights of 7 bits overflow nowhere.
    options = {"engine": "openvino", "fast": True, "device": "cpu", "cpu": CPU("new", int8=True, max_integer=63)}
    engine = open_engine(backbone, **options)
    with caplog.at_level(logging.INFO, logger="foveal"):
        engine.settle([pictures(24)], folder=tmp_path / "engine")
        description = engine.description
        assert (description["name"], description["precision"]) == ("openvino", "int8")
        again = open_engine(backbone, **options)
        again.settle([pictures(3)])  # too few to calibrate on: the numbers come from the cache
        assert again.description == description
        shutil.rmtree(home)
        again = open_engine(backbone, **options)
        again.settle([pictures(3)], folder=tmp_path / "engine")  # and here from the store
        assert again.description == description
    assert caplog.text.count("calibrating int8 on 16 images") == 1


def test_attention_is_that_of_the_reference_before_and_after_a_choice(network: Callable, pictures: Callable) -> None:
    backbone, other = network(), network()
    with torch.no_grad():
        other.blocks[0].attn.qkv.weight.mul_(1.000001)
    engine, batch = _auto(backbone, {"other": other}), pictures(2)
    expected = TorchEngine(backbone).attention(batch, layer=0, queries=[0])
    assert torch.equal(engine.attention(batch, layer=0, queries=[0]), expected)
    engine.settle([batch])
    assert engine.description["precision"] == "fp32"
    assert torch.equal(engine.attention(batch, layer=0, queries=[0]), expected)


@pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16", "bf16"])
def test_bf16_instructions_are_known_in_one_place(instruction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True})
    assert has_bf16()
    assert this_cpu().bf16 == (instruction != "bf16")  # candidates are chosen by those of x86
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: False})
    assert not has_bf16()
