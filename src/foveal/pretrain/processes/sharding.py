"""How the networks of a run lie in memory: whole or in shards, blocks compiled or recomputed."""

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from foveal.backbone.vit import VisionTransformer
from foveal.pretrain.network import Network
from foveal.pretrain.processes.parallel import World
from foveal.pretrain.recipe import Recipe


def lay_out(network: Network, recipe: Recipe, *, device: torch.device, world: World) -> None:
    """Make a network on `device` what `recipe.parallel` asks for, in place; names of tensors stay as they are.

    Call it before an optimizer or an average takes the parameters: with fsdp they become DTensors. Every block and
    every head is then one unit of FSDP2, gathered when it runs; the rest of the backbone is one more. Gradients are
    summed, not averaged, because a loss already is this process's share of the whole. In bf16 blocks and heads are
    gathered as bf16, embeddings and final norm as fp32, so that the residual stream stays fp32; gradients are summed in
    fp32.
    """
    settings, backbone = recipe.parallel, network.backbone
    backbone.recompute_blocks = settings.recompute
    if settings.compile:
        for block in backbone.blocks:
            block.forward = torch.compile(block.forward)  # not block.compile(), which would compile FSDP's hooks too
    if settings.strategy != "fsdp" or world.group is None:
        return
    mesh = init_device_mesh(device.type, (world.size,))
    policy = MixedPrecisionPolicy()
    if recipe.precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    heads = [child for child in network.children() if child is not backbone]
    # An outermost unit stays gathered after its forward pass by default; a teacher would do so for ever.
    for unit in (*backbone.blocks, *heads):
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(backbone, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(backbone, "forward_rows")
    for head in heads:
        register_fsdp_forward_method(head, "prototypes")
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other way to leave the sum undivided


def whole_backbone(backbone: VisionTransformer) -> VisionTransformer:
    """Return a backbone that one process can run alone: itself, or where it lies in shards a copy; all take part."""
    tensors = backbone.state_dict()
    if not any(isinstance(value, DTensor) for value in tensors.values()):
        return backbone
    copy = VisionTransformer(backbone.config).to(next(iter(tensors.values())).device)
    copy.load_state_dict({name: whole(value) for name, value in tensors.items()})
    return copy


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its shards; every process takes part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
