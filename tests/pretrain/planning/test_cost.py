"""The paper costs against what PyTorch counts, and against the published table."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foveal.backbone import layers
from foveal.backbone.variants import BackboneConfig, backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.pretrain.learner import SelfDistillation, build_networks
from foveal.pretrain.planning import cost
from foveal.pretrain.recipe import load_recipe


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_forward_operations_are_those_that_pytorch_counts(ffn: str) -> None:
    config = backbone_config("vit_nano", ffn=ffn, patch_size=7, image_size=35, num_registers=3)
    network = VisionTransformer(config).eval()
    # The counter knows no fused attention of CPUs: plain products stand in for it.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.randn(1, 3, 42, 42))
    assert cost.forward_flops(config, 42) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_a_vit_s_takes_the_operations_that_are_known() -> None:
    assert cost.forward_flops(backbone_config("vits"), 224) == pytest.approx(12.25e9, rel=0.01)
    assert cost.forward_flops(backbone_config("vitb"), 224) == pytest.approx(46.3e9, rel=0.01)


def test_parameters_are_those_of_the_networks(tiny: Any) -> None:
    recipe = tiny()
    student, _ = build_networks(recipe)
    counted = {name: sum(p.numel() for p in child.parameters()) for name, child in student.named_children()}
    assert cost.num_parameters(recipe) == counted
    block = sum(p.numel() for p in student.backbone.blocks[0].parameters())
    assert cost.block_parameters(recipe.backbone) == block
    swiglu = recipe.backbone.model_copy(update={"ffn": "swiglu"})
    assert cost.block_parameters(swiglu) == sum(p.numel() for p in VisionTransformer(swiglu).blocks[0].parameters())


def _kept_bytes(config: BackboneConfig, images: list[Tensor], *, bf16: bool) -> int:
    """Bytes that autograd really keeps of one forward pass, weights left out."""
    network = VisionTransformer(config)
    network.init_weights(torch.Generator().manual_seed(0))
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        outputs = network.forward_rows(images, [None] * len(images), torch.arange(sum(len(i) for i in images)))
    assert outputs.requires_grad
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    return sum(size for pointer, size in kept.items() if pointer not in weights)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_activations_are_those_that_autograd_keeps(
    tiny: Any, ffn: str, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers._MixByProducts, "apply", layers._mixed)  # as on a GPU, where bf16 keeps a little more
    recipe = tiny("micro_batch_size=2", f"backbone.ffn={ffn}", "backbone.drop_path_rate=0", f"precision={_name(bf16)}")
    views = recipe.views
    images = [torch.randn(4, 3, views.global_size, views.global_size)]
    images += [torch.randn(2 * views.num_local, 3, views.local_size, views.local_size)]
    # What one more block keeps: the last one keeps less, for it computes only what the losses read.
    deep, deeper = (recipe.backbone.model_copy(update={"depth": depth}) for depth in (3, 5))
    measured = (_kept_bytes(deeper, images, bf16=bf16) - _kept_bytes(deep, images, bf16=bf16)) / 2
    predicted = cost.activation_bytes(recipe) / recipe.backbone.depth
    assert predicted == pytest.approx(measured, rel=0.02)


def _name(bf16: bool) -> str:
    return "bf16" if bf16 else "fp32"


def test_recomputing_keeps_one_block_and_the_inputs_of_the_others(tiny: Any) -> None:
    recipe = tiny("backbone.depth=40")
    assert cost.activation_bytes(recipe, recomputed=True) < cost.activation_bytes(recipe) / 5


def test_memory_on_more_devices_by_hand() -> None:
    recipe = load_recipe("vitg14_lvd142m", ["images=a", "out=b"])
    parameters = sum(cost.num_parameters(recipe).values())
    whole, eighth = cost.memory_bytes(recipe), cost.memory_bytes(recipe, num_devices=8, sharded=True)
    states = ("student", "gradients", "AdamW", "teacher")
    assert sum(whole[name] for name in states) == 20 * parameters
    assert sum(eighth[name] for name in states) == pytest.approx(20 * parameters / 8, rel=1e-6)
    replica = cost.memory_bytes(recipe, num_devices=2)
    shared = "heads and losses"  # the bottleneck of the step's images; all else of a replica is its own
    assert {k: v for k, v in replica.items() if k != shared} == {k: v for k, v in whole.items() if k != shared}
    ibot_rows, dino_rows = cost.masked_patches(recipe, 3072), 2 * 3072
    assert whole[shared] - replica[shared] == pytest.approx(4 / 2 * (256 * ibot_rows + 384 * dino_rows), rel=1e-6)
    assert whole["activations"] == eighth["activations"]
    assert cost.checkpoint_bytes(recipe) == 16 * parameters


def test_a_gram_anchor_is_counted_with_its_finer_crops(tiny: Any) -> None:
    plain, held = tiny(), tiny("gram={anchor: teacher, resolution_factor: 2}")
    backbone = 4 * cost.num_parameters(plain)["backbone"]
    before, after = cost.memory_bytes(plain), cost.memory_bytes(held)
    assert after.pop("Gram anchor") == backbone
    finer = 4 * 3 * 2 * 64**2 * plain.micro_batch
    assert after == before | {"images": before["images"] + finer}
    assert cost.checkpoint_bytes(held) == cost.checkpoint_bytes(plain) + backbone
    flops = cost.step_flops(held)
    assert flops.pop("Gram anchor") == 2 * plain.batch_size * cost.forward_flops(plain.backbone, 64)
    assert flops == cost.step_flops(plain)


def test_mixed_resolutions_take_the_memory_of_the_largest_and_the_operations_of_the_mean(tiny: Any) -> None:
    small, large = tiny(), tiny("views.global_size=64", "views.local_size=24")
    mixed = tiny("views.other_sizes=[[64, 24, 0.25]]")
    assert cost.memory_bytes(mixed) == cost.memory_bytes(large)
    assert sum(cost.memory_bytes(large).values()) > sum(cost.memory_bytes(small).values())
    low, high = cost.step_flops(small), cost.step_flops(large)
    assert cost.step_flops(mixed) == pytest.approx({name: 0.75 * low[name] + 0.25 * high[name] for name in low})


def test_a_device_alone_sends_nothing_and_two_send_half_of_all_gradients_twice() -> None:
    recipe = load_recipe("vitl16_in1k_short", ["images=a", "out=b"])
    assert set(cost.communication_bytes(recipe, num_devices=1).values()) == {0}
    sent = cost.communication_bytes(recipe, num_devices=2)
    assert sent["gradients"] == 4 * sum(cost.num_parameters(recipe).values())
    sharded = cost.communication_bytes(recipe, num_devices=2, sharded=True)
    micro_batches = recipe.batch_size / recipe.micro_batch / 2  # of a device: shards are summed in each of them
    assert micro_batches > 1
    assert sharded["gradients"] == micro_batches * sent["gradients"] / 2
    assert sharded["weights"] == micro_batches * 3 * sent["gradients"] / 4


def test_the_scope_of_a_step_costs_a_second_pass_and_logits_formed_anew() -> None:
    recipe = load_recipe("vitg14_lvd142m", ["images=a", "out=b"])
    logits = 2 * 131_072 * (256 * cost.masked_patches(recipe, 3072) + 384 * 2 * 3072)
    assert cost.batch_scope_flops(recipe) == {"KoLeo": 0, "Sinkhorn-Knopp": pytest.approx(3 * logits)}
    overrides = ["images=a", "out=b", "objective.koleo_group=null", "backbone.drop_path_rate=0"]
    whole = load_recipe("vitg14_lvd142m", overrides)
    second = 2 * 3072 * cost.forward_flops(recipe.backbone, 224)
    assert cost.batch_scope_flops(whole)["KoLeo"] == pytest.approx(second * 255 / 256)
    assert cost.batch_scope_flops(whole, num_devices=128)["KoLeo"] == pytest.approx(second / 2)
    assert cost.batch_scope_flops(whole, num_devices=256) == {"KoLeo": 0, "Sinkhorn-Knopp": 0}


def test_a_run_says_once_what_the_scope_of_a_step_costs(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "foveal.pretrain.learner")
    recipe = tiny()
    SelfDistillation(recipe, device=torch.device("cpu"))
    percent = 100 * cost.batch_scope_flops(recipe)["KoLeo"] / sum(cost.step_flops(recipe).values())
    assert percent > 1
    assert f"all 4 images of a step cost KoLeo {percent:.1f} % more operations" in caplog.text
    caplog.clear()
    for override in ("micro_batch_size=4", "objective.koleo_group=2", "objective.batch_scope=micro_batch"):
        SelfDistillation(tiny(override), device=torch.device("cpu"))
    assert not caplog.text
