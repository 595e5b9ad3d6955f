import pytest
import torch

from foveal.backbone.variants import backbone_config
from foveal.pretrain.network import HeadSize, Network
from foveal.pretrain.optimizer import adamw, clip_each, parameter_groups, set_rates


@pytest.fixture
def network() -> Network:
    config = backbone_config("vit_nano", depth=2, patch_size=4, image_size=8, num_registers=1)
    head = HeadSize(num_prototypes=5, bottleneck=3, hidden=4)
    return Network(config, dino=head, ibot=head).init_weights(torch.Generator().manual_seed(0))


def test_multipliers_by_hand(network: Network) -> None:
    """Decay 0.5, two blocks: embeddings 1/8, block 0 1/4, block 1 1/2, final norm and heads 1; patch embedding / 10."""
    groups = parameter_groups(network, layer_decay=0.5, patch_embed_lr_multiplier=0.1)
    found = {
        name: (group["lr_multiplier"], group["wd_multiplier"], group["is_last_layer"])
        for group in groups
        for name in group["names"]
    }
    expected = {
        "backbone.cls_token": (0.125, 1.0, False),
        "backbone.pos_embed": (0.125, 1.0, False),
        "backbone.mask_token": (0.125, 1.0, False),
        "backbone.register_tokens": (0.125, 1.0, False),
        "backbone.patch_embed.proj.weight": (0.0125, 1.0, False),
        "backbone.patch_embed.proj.bias": (0.0125, 0.0, False),
        "backbone.blocks.0.attn.qkv.weight": (0.25, 1.0, False),
        "backbone.blocks.0.norm1.weight": (0.25, 0.0, False),
        "backbone.blocks.1.ls2.gamma": (0.5, 0.0, False),
        "backbone.blocks.1.mlp.fc1.bias": (0.5, 0.0, False),
        "backbone.norm.weight": (1.0, 0.0, False),
        "dino_head.mlp.0.weight": (1.0, 1.0, False),
        "dino_head.mlp.4.bias": (1.0, 0.0, False),
        "ibot_head.last_layer.weight_g": (1.0, 1.0, True),
        "ibot_head.last_layer.weight_v": (1.0, 1.0, True),
    }
    assert {name: found[name] for name in expected} == expected


def test_every_parameter_is_in_exactly_one_group(network: Network) -> None:
    network.dino_head.mlp[0].weight.requires_grad_(False)
    groups = parameter_groups(network, layer_decay=0.9, patch_embed_lr_multiplier=0.2)
    names = sorted(name for group in groups for name in group["names"])
    assert names == sorted(name for name, parameter in network.named_parameters() if parameter.requires_grad)
    assert "dino_head.mlp.0.weight" not in names


def test_rates_are_products(network: Network) -> None:
    groups = parameter_groups(network, layer_decay=0.5, patch_embed_lr_multiplier=0.1)
    optimizer = adamw(groups)
    set_rates(optimizer, lr=0.8, weight_decay=0.3, last_layer_lr=0.2, backbone_lr=0.8)
    for group in optimizer.param_groups:
        rate = 0.2 if group["is_last_layer"] else 0.8
        assert group["lr"] == rate * group["lr_multiplier"]
        assert group["weight_decay"] == 0.3 * group["wd_multiplier"]


def test_first_step_by_hand() -> None:
    """AdamW: w <- w (1 - lr wd); then - lr g / (|g| + eps), because both moments start from this gradient."""
    module = torch.nn.ModuleDict({"dino_head": torch.nn.Linear(1, 1, bias=False)})
    weight = module["dino_head"].weight
    weight.data.fill_(2.0)
    optimizer = adamw(parameter_groups(module, layer_decay=0.5, patch_embed_lr_multiplier=0.1))
    weight.grad = torch.full_like(weight, -5.0)
    set_rates(optimizer, lr=0.1, weight_decay=0.5, last_layer_lr=0.0, backbone_lr=0.1)
    optimizer.step()
    assert weight.item() == pytest.approx(2.0 * (1 - 0.05) + 0.1, rel=1e-6)


def test_last_layer_with_rate_0_does_not_move_at_all(network: Network) -> None:
    optimizer = adamw(parameter_groups(network, layer_decay=0.9, patch_embed_lr_multiplier=0.2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    set_rates(optimizer, lr=0.1, weight_decay=0.4, last_layer_lr=0.0, backbone_lr=0.1)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in before if name not in moved} == {
        f"{head}.last_layer.{part}" for head in ("dino_head", "ibot_head") for part in ("weight_g", "weight_v")
    }


def test_each_module_is_clipped_on_its_own(network: Network) -> None:
    for name, child in network.named_children():
        for parameter in child.parameters():
            parameter.grad = torch.full_like(parameter, 1e-4 if name == "dino_head" else 1.0)
    norms = clip_each(network, 3.0)
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in network.named_children()}
    scale = {"backbone": 1.0, "dino_head": 1e-4, "ibot_head": 1.0}
    assert {name: value.item() for name, value in norms.items()} == pytest.approx(
        {name: scale[name] * sizes[name] ** 0.5 for name in sizes}, rel=1e-5
    )
    after = {
        name: torch.cat([p.grad.flatten() for p in child.parameters() if p.grad is not None]).norm().item()
        for name, child in network.named_children()
    }
    # clip_grad_norm_ divides by norm + 1e-6
    assert after == pytest.approx({"backbone": 3.0, "ibot_head": 3.0, "dino_head": norms["dino_head"].item()}, rel=1e-5)
