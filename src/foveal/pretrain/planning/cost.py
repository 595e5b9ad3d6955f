"""What a training step costs on paper: operations, bytes on every device, bytes between devices.

Computed from the recipe alone, in milliseconds, for networks of any size: tensors are counted, never made.
"""

import math

import torch

from foveal.backbone.variants import BackboneConfig
from foveal.objectives.logits import CHUNK_ELEMENTS
from foveal.objectives.sinkhorn import KEPT_ELEMENTS
from foveal.pretrain.network import Network
from foveal.pretrain.recipe import Head, Recipe

_FP32 = 4
_GEMM_PASSES = 3  # the forward pass, and two products of its size in the backward pass


def forward_flops(config: BackboneConfig, size: int) -> float:
    """Return the operations of one square image of `size` pixels through the backbone; a multiply-add counts as two."""
    patches = (size // config.patch_size) ** 2
    tokens = _tokens(config, size)
    ffn = (3 if config.ffn == "swiglu" else 2) * config.width * config.ffn_hidden
    per_block = 2 * tokens * (4 * config.width**2 + ffn) + 4 * tokens**2 * config.width
    return config.depth * per_block + 2 * patches * config.channels * config.patch_size**2 * config.width


def step_flops(recipe: Recipe) -> dict[str, float]:
    """Return the operations of one step of the whole batch, by part; of mixed resolutions, on average.

    A Gram anchor is counted as if it were there from the first step. Only matrix products and attention count: norms,
    softmax and the optimizer are bytes, not operations. The student's last feed-forward is counted in full, though it
    runs only on the tokens that the losses read.
    """
    flops = dict[str, float]()
    for probability, each in _resolutions(recipe):
        for name, value in _flops_of_one_resolution(each).items():
            flops[name] = flops.get(name, 0.0) + probability * value
    return flops


def _flops_of_one_resolution(recipe: Recipe) -> dict[str, float]:
    config, views, images = recipe.backbone, recipe.views, recipe.batch_size
    of_global = 2 * images * forward_flops(config, views.global_size)
    of_local = views.num_local * images * forward_flops(config, views.local_size)
    kept = 1 - config.drop_path_rate
    image_rows, patch_rows = 2 * images, masked_patches(recipe, images)
    dino, ibot = recipe.heads.dino, recipe.heads.ibot or recipe.heads.dino
    teacher_heads = image_rows * _row_flops(dino, config.width) + patch_rows * _row_flops(ibot, config.width)
    student_heads = teacher_heads + views.num_local * images * _row_flops(dino, config.width)
    gram = recipe.gram
    of_anchor = 2 * images * forward_flops(config, views.global_size * gram.resolution_factor) if gram else 0.0
    return {
        "teacher backbone": of_global,
        "student backbone": _GEMM_PASSES * kept * (of_global + of_local),
        "teacher heads": teacher_heads,
        "student heads": _GEMM_PASSES * student_heads,
        **({"Gram anchor": of_anchor} if gram else {}),
    }


def _resolutions(recipe: Recipe) -> list[tuple[float, Recipe]]:
    """Return the recipe at each of its resolutions alone, with the share of micro-batches that have it."""
    views, others = recipe.views, recipe.views.other_sizes
    sizes = [(views.global_size, views.local_size, 1 - sum(share for *_, share in others)), *others]
    return [
        (
            share,
            recipe.model_copy(
                update={
                    "views": views.model_copy(
                        update={"global_size": global_size, "local_size": local_size, "other_sizes": ()}
                    )
                }
            ),
        )
        for global_size, local_size, share in sizes
    ]


def batch_scope_flops(recipe: Recipe, *, num_devices: int = 1) -> dict[str, float]:
    """Return the operations that objective.batch_scope=step adds to those of a step, by what they are for.

    KoLeo: the student's class tokens of all but a device's first micro-batch, where neighbours may be in another one.
    Sinkhorn-Knopp: logits that are formed four times, because they are too many to keep.
    """
    config, objective, images = recipe.backbone, recipe.objective, recipe.batch_size
    count = images // recipe.micro_batch // num_devices
    neighbours = objective.settings().neighbours(micro_batch=recipe.micro_batch, step=images)
    second_pass = 2 * images * forward_flops(config, recipe.views.global_size) * (1 - config.drop_path_rate)
    across = objective.koleo_weight > 0 and recipe.micro_batch % neighbours > 0
    anew = [
        3 * 2 * rows * head.bottleneck * head.num_prototypes
        for rows, head in _target_rows(recipe, images)
        if rows / num_devices * head.num_prototypes > KEPT_ELEMENTS
    ]
    return {
        "KoLeo": second_pass * (count - 1) / count if across else 0.0,
        "Sinkhorn-Knopp": sum(anew) if objective.centering == "sinkhorn_knopp" else 0.0,
    }


def num_parameters(recipe: Recipe) -> dict[str, int]:
    """Return the parameters of one network: backbone, dino_head, and ibot_head where it has one of its own."""
    with torch.device("meta"):
        ibot = recipe.heads.ibot.size() if recipe.heads.ibot else None
        network = Network(recipe.backbone, dino=recipe.heads.dino.size(), ibot=ibot)
    return {name: sum(p.numel() for p in child.parameters()) for name, child in network.named_children()}


def memory_bytes(
    recipe: Recipe, *, num_devices: int = 1, sharded: bool = False, recomputed: bool = False
) -> dict[str, int]:
    """Return the bytes that one of `num_devices` holds at the peak of a step, by what they are.

    Args:
        recipe: its batch is shared by the devices; a device holds one micro-batch at a time.
        num_devices: processes, one a device.
        sharded: weights, gradients, optimizer state and teacher are spread over the devices (FSDP); otherwise each
            device holds them whole.
        recomputed: activations are recomputed in the backward pass (activation checkpointing).

    Of mixed resolutions the one that takes most counts. What a library takes for itself (a CUDA context, communication
    buffers, fragmentation) is not in it.
    """
    found = (
        _memory_of_one_resolution(each, num_devices=num_devices, sharded=sharded, recomputed=recomputed)
        for _, each in _resolutions(recipe)
    )
    return max(found, key=lambda held: sum(held.values()))


def _memory_of_one_resolution(recipe: Recipe, *, num_devices: int, sharded: bool, recomputed: bool) -> dict[str, int]:
    config = recipe.backbone
    counted, gram = num_parameters(recipe), recipe.gram
    parameters = sum(counted.values())
    held = math.ceil(parameters / num_devices) if sharded else parameters
    wide = 2 if recipe.precision == "bf16" else _FP32
    gathered = 2 * wide * block_parameters(config) if sharded else 0  # a block in use, and the next on its way
    views, images = recipe.views, recipe.micro_batch
    pixels = 2 * views.global_size**2 + views.num_local * views.local_size**2
    if gram and gram.resolution_factor > 1:  # its crops come beside the others
        pixels += 2 * (gram.resolution_factor * views.global_size) ** 2
    return {
        "student": _FP32 * held,
        "gradients": _FP32 * held,
        "AdamW": 2 * _FP32 * held,
        "teacher": _FP32 * held,
        **({"Gram anchor": _FP32 * counted["backbone"]} if gram else {}),
        "gathered blocks": gathered,
        "images": _FP32 * config.channels * pixels * images,
        "activations": activation_bytes(recipe, recomputed=recomputed),
        "heads and losses": _head_bytes(recipe, num_devices),
    }


def activation_bytes(recipe: Recipe, *, recomputed: bool = False) -> int:
    """Return what autograd keeps of the student's backbone for one micro-batch.

    A block keeps, for each token: in float32 two inputs of its norms, their statistics and one number a head; then, in
    the precision of the products, both norms' outputs, q, k and v, the mixed values, once more where crops of two sizes
    are put together, the two branches' outputs (8 or 9 D), and the hidden values: before GELU (H), or both halves, the
    gate and the product (4 H). A dropped branch keeps nothing. In bf16 a CPU keeps q, k and v of attention alone.
    """
    config, views, images = recipe.backbone, recipe.views, recipe.micro_batch
    tokens = images * (2 * _tokens(config, views.global_size) + views.num_local * _tokens(config, views.local_size))
    wide = 2 if recipe.precision == "bf16" else _FP32
    hidden = (4 if config.ffn == "swiglu" else 1) * config.ffn_hidden
    kept = 1 - config.drop_path_rate
    branches = kept * wide * ((9 if views.num_local else 8) * config.width + hidden)
    inputs = _FP32 * (2 * config.width + 4 + config.num_heads)
    if recomputed:
        return round(tokens * (config.depth * _FP32 * config.width + inputs + branches))
    cast = block_parameters(config) - (0 if config.ffn == "swiglu" else config.width * config.ffn_hidden)
    casts = wide * cast if recipe.precision == "bf16" else 0  # autocast's copies of the weights, but the last one's
    return round(tokens * config.depth * (inputs + branches)) + config.depth * casts


def checkpoint_bytes(recipe: Recipe) -> int:
    """Return the bytes of one checkpoint: student, teacher, AdamW's two moments, a copied anchor, all float32."""
    counted = num_parameters(recipe)
    anchor = counted["backbone"] if recipe.gram and recipe.gram.anchor == "teacher" else 0
    return _FP32 * (4 * sum(counted.values()) + anchor)


def communication_bytes(recipe: Recipe, *, num_devices: int, sharded: bool = False) -> dict[str, int]:
    """Return the bytes that one device sends in a step, by why.

    Collectives in their ring form: an all-reduce of S bytes sends 2 S (n - 1) / n, a gather or a reduce-scatter half of
    that. Sharded weights travel in the precision of the products: twice for the student (forward, backward), once for
    the teacher; their gradients travel in float32. Both do so every micro-batch, gradients of whole copies once a step.
    """
    share = (num_devices - 1) / num_devices
    parameters = sum(num_parameters(recipe).values())
    wide = 2 if recipe.precision == "bf16" else _FP32
    per_device = recipe.batch_size // recipe.micro_batch / num_devices
    dino, ibot = recipe.heads.dino, recipe.heads.ibot or recipe.heads.dino
    sinkhorn = 3 * (dino.num_prototypes + ibot.num_prototypes) * _FP32
    return {
        "weights": round(3 * wide * parameters * per_device * share) if sharded else 0,
        "gradients": round((per_device if sharded else 2) * _FP32 * parameters * share),
        "Sinkhorn-Knopp": round(2 * sinkhorn * share),
        "KoLeo": round(2 * recipe.batch_size * recipe.backbone.width * _FP32 * share),
    }


def masked_patches(recipe: Recipe, images: int) -> float:
    """Return how many patches of the two global crops of `images` images are masked, on average."""
    patches = (recipe.views.global_size // recipe.backbone.patch_size) ** 2
    masks = recipe.masks
    return 2 * images * masks.probability * (masks.ratio_min + masks.ratio_max) / 2 * patches


def block_parameters(config: BackboneConfig) -> int:
    """Return the parameters of one block."""
    width, hidden = config.width, config.ffn_hidden
    widened = 2 * hidden if config.ffn == "swiglu" else hidden
    attention = 4 * width * width + 4 * width
    return attention + width * widened + widened + hidden * width + width + 6 * width


def _tokens(config: BackboneConfig, size: int) -> int:
    return (size // config.patch_size) ** 2 + 1 + config.num_registers


def _row_flops(head: Head, width: int) -> float:
    """Operations of one token through a head and its prototypes."""
    mlp = width * head.hidden + head.hidden**2 + head.hidden * head.bottleneck
    return 2 * (mlp + head.bottleneck * head.num_prototypes)


def _target_rows(recipe: Recipe, images: int) -> list[tuple[float, Head]]:
    """Return how many rows have targets, and of which head: global crops, and masked patches."""
    dino, ibot = recipe.heads.dino, recipe.heads.ibot or recipe.heads.dino
    return [(2 * images, dino), (masked_patches(recipe, images), ibot)]


def _head_bytes(recipe: Recipe, num_devices: int) -> int:
    """What the heads and losses hold: hidden values of every row, two tables of prototypes and gradients, chunks.

    Of all rows that are balanced together the bottleneck, and the logits too where they are few enough to be kept.
    """
    images, views = recipe.micro_batch, recipe.views
    dino, ibot = recipe.heads.dino, recipe.heads.ibot or recipe.heads.dino
    wide = 2 if recipe.precision == "bf16" else _FP32
    image_rows, patch_rows = (2 + views.num_local) * images, masked_patches(recipe, images)
    hidden = wide * 4 * (image_rows * dino.hidden + patch_rows * ibot.hidden)
    tables = 3 * _FP32 * (dino.num_prototypes * dino.bottleneck + ibot.num_prototypes * ibot.bottleneck)
    together = recipe.batch_size // num_devices if recipe.objective.batch_scope == "step" else images
    targets = 3.0 * _FP32 * images * dino.num_prototypes
    for rows, head in _target_rows(recipe, together):
        logits = rows * head.num_prototypes
        keeps = recipe.objective.centering == "sinkhorn_knopp" and logits <= KEPT_ELEMENTS
        targets += _FP32 * (rows * head.bottleneck + (logits if keeps else 0))
    return round(hidden + tables + targets + 3 * _FP32 * CHUNK_ELEMENTS)
