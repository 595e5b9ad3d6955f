"""How near a training step is to its floor, and where the time goes.

    python benchmarks/training_step.py                      # ViT-S/14, 8 images, 2 x 224 + 8 x 98
    python benchmarks/training_step.py --prototypes 65536 --precision fp32

Where `lightly`, timm and torchvision are installed, the step of its documented DINOv2 example runs in turn with ours,
on the same crops and masks, without drop path.

The floor is the step's operations over this machine's matrix rate. The rate is measured right before and after every
step, on the step's own largest shape, so that a neighbour on the machine slows both. Operations: teacher forward,
student forward and backward (three times a forward), heads; elementwise work, norms, softmax and the optimizer count
as nothing. The student's last feed-forward runs only on tokens that the losses read, and is counted in full all the
same: the floor is that of the plain step.
"""

import argparse
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from foveal.backbone.variants import BackboneConfig, backbone_config
from foveal.engine.memory import freed_memory_kept
from foveal.pretrain.data.masks import make_masks
from foveal.pretrain.network import Batch, HeadSize, Network
from foveal.pretrain.optimizer import adamw, clip_each, parameter_groups, set_rates
from foveal.pretrain.planning.cost import forward_flops
from foveal.pretrain.step import EMA, Centers, ObjectiveSettings, accumulate_step, is_finite

NUM_IMAGES, GLOBAL_SIZE, LOCAL_SIZE, NUM_LOCAL, PATCH = 8, 224, 98, 8, 14
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::mkldnn_linear"),
    "attention": ("scaled_dot_product",),
    "GELU": ("aten::gelu",),
    "layer norm": ("layer_norm",),
    "optimizer, EMA, clipping": ("_fused_adamw", "lerp", "_foreach", "linalg_vector_norm"),
    "softmax and loss": ("logsumexp", "aten::exp_", "vecdot", "aten::addcmul_", "aten::sub_"),
    "copies": ("aten::copy_", "aten::cat", "aten::index_select", "aten::fill_", "aten::index_add"),
}


def step_flops(config: BackboneConfig, head: HeadSize, num_masked: int) -> float:
    """Operations of one step: teacher forward, student forward and backward, heads."""
    of_global, of_local = (forward_flops(config, size) for size in (GLOBAL_SIZE, LOCAL_SIZE))
    backbone = NUM_IMAGES * (2 * of_global + 3 * (2 * of_global + NUM_LOCAL * of_local))
    row = 2 * (
        config.width * head.hidden
        + head.hidden**2
        + head.hidden * head.bottleneck
        + head.bottleneck * head.num_prototypes
    )
    teacher_rows = 2 * NUM_IMAGES + num_masked
    return backbone + row * (teacher_rows + 3 * (teacher_rows + NUM_LOCAL * NUM_IMAGES))


def matrix_rate(dtype: torch.dtype, *, repeats: int = 10) -> float:
    """Operations a second of products of the step's own shape, over half a second, as the step sees the machine."""
    left, right = torch.randn(7312, 384, dtype=dtype), torch.randn(384, 1536, dtype=dtype)
    left @ right
    started = time.perf_counter()
    for _ in range(repeats):
        left @ right
    return repeats * 2 * 7312 * 384 * 1536 / (time.perf_counter() - started)


def make_batch() -> Batch:
    """Return crops and masks of one step."""
    grid = GLOBAL_SIZE // PATCH
    masks = torch.from_numpy(make_masks(num_images=2 * NUM_IMAGES, grid_h=grid, grid_w=grid, seed=0, step=1))
    generator = torch.Generator().manual_seed(1)
    return Batch(
        torch.randn(2 * NUM_IMAGES, 3, GLOBAL_SIZE, GLOBAL_SIZE, generator=generator),
        torch.randn(NUM_LOCAL * NUM_IMAGES, 3, LOCAL_SIZE, LOCAL_SIZE, generator=generator),
        masks,
    )


def make_step(batch: Batch, num_prototypes: int, precision: str) -> tuple[Callable[[], None], float]:
    """Return a function that runs one whole step on data in memory, and its operations."""
    config = backbone_config("vits", image_size=GLOBAL_SIZE)
    head = HeadSize(num_prototypes, bottleneck=256, hidden=2048)
    student, teacher = (Network(config, dino=head, ibot=None) for _ in range(2))
    student.init_weights(torch.Generator().manual_seed(0))
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    optimizer = adamw(parameter_groups(student, layer_decay=0.9, patch_embed_lr_multiplier=0.2))
    ema = EMA(teacher, student)
    centers = Centers(torch.zeros(num_prototypes), torch.zeros(num_prototypes))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses = accumulate_step(
                student, teacher, [batch], settings=ObjectiveSettings(), centers=centers, teacher_temperature=0.05
            )
        norms = clip_each(student, 3.0)
        if not is_finite(losses, norms):
            raise SystemExit("the step is not finite")
        set_rates(optimizer, lr=1e-4, weight_decay=0.04, last_layer_lr=1e-4, backbone_lr=1e-4)
        optimizer.step()
        ema.update(0.99)

    return step, step_flops(config, head, int(batch.masks.sum()))


def make_peer_step(batch: Batch, num_prototypes: int, precision: str) -> Callable[[], None] | None:
    """Return a function that runs the step of lightly's documented DINOv2 example on the same batch, or None."""
    try:
        # A torchvision made for CUDA does not import beside a PyTorch for CPUs unless these operators are known.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
        from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerTIMM
        from lightly.models.utils import update_momentum
        from timm.models.vision_transformer import VisionTransformer
    except (ImportError, RuntimeError) as error:
        print(f"lightly: not measured ({error})")
        return None

    def network() -> torch.nn.ModuleDict:
        vit = VisionTransformer(
            GLOBAL_SIZE, PATCH, embed_dim=384, num_heads=6, init_values=1e-5, dynamic_img_size=True, num_classes=0
        )
        masked = MaskedVisionTransformerTIMM(vit=vit, antialias=False, pos_embed_initialization="skip")
        head = DINOProjectionHead(384, 2048, 256, num_prototypes, norm_last_layer=False)
        return torch.nn.ModuleDict({"backbone": masked, "head": head})

    student, teacher = network(), network()
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    dino_loss, ibot_loss, koleo_loss = DINOLoss(num_prototypes), IBOTPatchLoss(num_prototypes), KoLeoLoss()
    grid = GLOBAL_SIZE // PATCH
    tokens_masked = torch.nn.functional.pad(batch.masks, (1, 0))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            with torch.no_grad():
                seen = teacher["backbone"].encode(batch.global_crops)
                teacher_cls, teacher_patches = teacher["head"](seen[:, 0]), teacher["head"](seen[tokens_masked])
            seen = student["backbone"].encode(batch.global_crops, mask=tokens_masked)
            cls = seen[:, 0]
            local = student["backbone"].encode(batch.local_crops)[:, 0]
            loss = dino_loss(
                list(teacher_cls.chunk(2)),
                [*student["head"](cls).chunk(2), *student["head"](local).chunk(NUM_LOCAL)],
                teacher_temp=0.05,
            )
            patches = student["head"](seen[tokens_masked])
            loss = loss + ibot_loss(teacher_patches, patches, batch.masks.unflatten(1, (grid, grid)), teacher_temp=0.05)
            loss = loss + 0.1 * sum(koleo_loss(view) for view in cls.chunk(2))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        update_momentum(student["backbone"], teacher["backbone"], m=0.99)
        update_momentum(student["head"], teacher["head"], m=0.99)

    return step


def breakdown(step: Callable[[], None]) -> dict[str, float]:
    """Share of the step's time by kind of operation, from one profiled step."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        step()
    events = record.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares: dict[str, float] = defaultdict(float)
    for event in events:
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), "the rest")
        shares[kind] += event.self_cpu_time_total / total
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def has_bf16() -> bool:
    """Tell whether this processor multiplies bf16; without, PyTorch emulates it, some hundred times slower."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def main() -> None:
    """Measure and print one line a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prototypes", type=int, nargs="+", default=[8192, 65536])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for precision in arguments.precision:
        if precision == "bf16" and not has_bf16():
            print("bf16: this processor has no bf16 instructions; not measured")
            continue
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        for num_prototypes in arguments.prototypes:
            with freed_memory_kept():
                batch = make_batch()
                step, flops = make_step(batch, num_prototypes, precision)
                peer = make_peer_step(batch, num_prototypes, precision)
                steps = {"foveal": step} | ({"lightly": peer} if peer else {})
                samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in steps}
                for number in range(arguments.steps + 1):
                    for name, run in steps.items():
                        before = matrix_rate(dtype)
                        started = time.perf_counter()
                        run()
                        elapsed = time.perf_counter() - started
                        rate = (before + matrix_rate(dtype)) / 2
                        if number:  # the first is for warming up
                            samples[name].append((elapsed * rate / flops, elapsed, rate))
                for name, taken in samples.items():
                    ratio, elapsed, rate = (median(column) for column in zip(*taken, strict=True))
                    best = min(sample[0] for sample in taken)
                    print(
                        f"{name} {precision} K={num_prototypes}: {elapsed:.2f} s/step, {flops / 1e9:.0f} GFLOP, matrix "
                        f"rate {rate / 1e9:.0f} GFLOP/s: {ratio:.2f} x the floor (best {best:.2f})"
                    )
                if not peer:
                    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
                    print(f"    peak memory of the process so far {peak:.2f} GiB")
                for kind, share in breakdown(step).items():
                    print(f"    {kind:26s} {100 * share:5.1f} %")


if __name__ == "__main__":
    main()
