"""Three whole training steps equal to what the reference implementation computed, in two settings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from foveal.backbone.variants import backbone_config
from foveal.pretrain.network import Batch, HeadSize, Network
from foveal.pretrain.optimizer import adamw, clip_each, parameter_groups, set_rates
from foveal.pretrain.step import EMA, Centers, ObjectiveSettings, accumulate_step

WIDTH = 48


@pytest.fixture(params=["steps_sinkhorn_separate", "steps_centering_shared"])
def reference(request: pytest.FixtureRequest, golden: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    settings = json.loads((golden / f"{request.param}.json").read_text())
    return settings, load_file(golden / f"{request.param}.safetensors")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _head(values: dict[str, Any]) -> HeadSize:
    return HeadSize(values["head_n_prototypes"], values["head_bottleneck_dim"], values["head_hidden_dim"])


def _network(settings: dict[str, Any], weights: dict[str, Tensor]) -> Network:
    student = settings["student"]
    config = backbone_config(
        "vit_nano",
        image_size=70,
        ffn="swiglu" if "swiglu" in student["ffn_layer"] else "mlp",
        num_registers=student["num_register_tokens"],
        layerscale_init=0.3,
    )
    ibot = _head(settings["ibot"]) if settings["ibot"]["separate_head"] else None
    network = Network(config, dino=_head(settings["dino"]), ibot=ibot)
    network.load_state_dict(weights)  # strict: the names are upstream's
    return network


def _groups(student: Network) -> list[dict[str, Any]]:
    return parameter_groups(student, layer_decay=0.9, patch_embed_lr_multiplier=0.2)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def test_parameter_groups_are_upstreams(reference: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    numbers, tensors = reference
    groups = _groups(_network(numbers["settings"], _part(tensors, "init.student.")))

    def counts(entries: list[tuple[float, float, bool, int]]) -> dict[tuple[float, float, bool], int]:
        total: dict[tuple[float, float, bool], int] = {}
        for lr, wd, last, n in entries:
            key = (round(lr, 9), wd, last)
            total[key] = total.get(key, 0) + n
        return total

    found = [
        (g["lr_multiplier"], g["wd_multiplier"], g["is_last_layer"], sum(p.numel() for p in g["params"]))
        for g in groups
    ]
    # upstream keeps the groups of each module apart, so its counts are added up
    assert counts(found) == counts(
        [(g["lr_multiplier"], g["wd_multiplier"], g["is_last_layer"], g["n"]) for g in numbers["param_groups"]]
    )


def test_three_steps_equal_the_reference(reference: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    numbers, tensors = reference
    settings = numbers["settings"]
    student = _network(settings, _part(tensors, "init.student."))
    teacher = _network(settings, _part(tensors, "init.teacher."))
    groups = _groups(student)
    optimizer, ema = adamw(groups), EMA(teacher, student)
    centers = Centers(
        torch.zeros(settings["dino"]["head_n_prototypes"]), torch.zeros(settings["ibot"]["head_n_prototypes"])
    )
    objective = ObjectiveSettings(centering=settings["train"]["centering"])
    for number, step in enumerate(numbers["steps"]):
        batch = Batch(*(tensors[f"step{number}.batch.{name}"] for name in ("global_crops", "local_crops", "masks")))
        set_rates(
            optimizer,
            lr=step["lr"],
            weight_decay=step["wd"],
            last_layer_lr=step["last_layer_lr"],
            backbone_lr=step["lr"],
        )
        optimizer.zero_grad()
        losses = accumulate_step(
            student, teacher, [batch], settings=objective, centers=centers, teacher_temperature=step["teacher_temp"]
        )
        norms = clip_each(student, step["clip"])
        _check_losses({name: value.item() for name, value in losses.items()}, step["losses"])
        assert {name: value.item() for name, value in norms.items()} == pytest.approx(
            step["grad_norms_before_clip"], rel=1e-3
        )
        optimizer.step()
        centers.commit(objective.center_momentum)
        ema.update(step["momentum"])
    for name, value in teacher.state_dict().items():
        assert _relative(value, tensors[f"step2.teacher.{name}"]) <= 1e-3, name
    multipliers = {name: group["lr_multiplier"] for group in groups for name in group["names"]}
    for name, value in student.state_dict().items():
        farthest = sum(step["lr"] for step in numbers["steps"]) * multipliers[name]
        _check_weights(name, value, tensors[f"step2.student.{name}"], farthest)


def _check_losses(found: dict[str, float], logged: dict[str, float]) -> None:
    """Upstream logs half of iBOT, and half of the weighted sum of KoLeo over the two views."""
    expected = {
        "dino_local": logged["dino_local_crops_loss"],
        "dino_global": logged["dino_global_crops_loss"],
        "ibot": 2 * logged["ibot_loss"],
        "koleo": 2 * logged["koleo_loss"] / 0.1,
    }
    total = expected["dino_local"] + expected["dino_global"] + expected["ibot"] + 0.1 * expected["koleo"]
    assert found == pytest.approx({**expected, "loss": total}, rel=1e-4)


def _check_weights(name: str, found: Tensor, expected: Tensor, farthest: float) -> None:
    """Relative L2 difference at most 1e-3, except for the keys' bias.

    Softmax does not see a constant that is added to the scores of all keys, so in exact arithmetic that bias has no
    gradient at all. What is left is rounding, and AdamW makes whole steps of it in either program: each moves an
    element by at most the sum of its rates (|m| <= sqrt(v) for so few steps), so they differ by at most twice that.
    """
    if name.endswith("attn.qkv.bias"):
        found_k, expected_k = found[WIDTH : 2 * WIDTH], expected[WIDTH : 2 * WIDTH]
        assert (found_k - expected_k).abs().max() <= 2 * farthest, name
        found, expected = (torch.cat([x[:WIDTH], x[2 * WIDTH :]]) for x in (found, expected))
    assert _relative(found, expected) <= 1e-3, name
