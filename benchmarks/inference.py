"""Images a second of the default and the fast path beside PyTorch, transformers and timm, with the cosine to fp32.

    python benchmarks/inference.py --images FOLDER            # ViT-S/14 and ViT-B/14 at 224, batch 1, 8, 32: minutes
    python benchmarks/inference.py --images FOLDER --quick    # ViT-S/14, batch 8: about a minute

FOLDER holds at least 32 photographs. Weights are random (the speed does not depend on them; the cosine does: give your
own by --model). All paths of one row run in turn, so that a neighbour on the machine slows all of them; the median of
each is shown, and its ratio to transformers (SDPA, fp32). The cosine is that of the class tokens, on 8 of the
photographs. End to end: the photographs as 500 x 375 JPEG files, decoded, cropped and encoded, over the rate of the
model alone in the same run.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, load_model
from foveal.engine.choose import open_engine
from foveal.engine.torch_engine import TorchEngine
from foveal.features.extract import Model
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import Preprocess

Path_ = Callable[[Tensor], Tensor]
SIZE = 224


def random_backbone(variant: str) -> VisionTransformer:
    """Return a network with random weights whose branches count: LayerScale 1 and tokens of the size of patches."""
    backbone = VisionTransformer(backbone_config(variant, layerscale_init=1.0)).eval()
    generator = torch.Generator().manual_seed(0)
    backbone.init_weights(generator)
    with torch.no_grad():
        for token in (backbone.cls_token, backbone.pos_embed):
            token.copy_(0.5 * torch.randn(token.shape, generator=generator))
    return backbone


def transformers_peer(variant: str) -> Path_ | None:
    """Return transformers' DINOv2 of the same size, SDPA, fp32 (random weights of its own)."""
    try:
        from transformers import Dinov2Config, Dinov2Model
    except ImportError:
        return None
    config = backbone_config(variant)
    peer = Dinov2Model(
        Dinov2Config(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            image_size=518,
            patch_size=14,
            attn_implementation="sdpa",
        )
    ).eval()
    return lambda batch: peer(pixel_values=batch).last_hidden_state[:, 0]


def timm_peer(variant: str) -> Path_ | None:
    """Return timm's DINOv2 of the same size, eager, fp32 (random weights of its own)."""
    try:
        import timm
    except ImportError:
        return None
    name = {"vits": "small", "vitb": "base"}[variant]
    peer = timm.create_model(f"vit_{name}_patch14_dinov2", pretrained=False, img_size=SIZE).eval()
    return lambda batch: peer.forward_features(batch)[:, 0]


def compiled_path(backbone: VisionTransformer) -> Path_:
    """Return our network through torch.compile, fp32."""
    compiled = torch.compile(backbone)
    return lambda batch: compiled(batch).cls


def onnxruntime_path(backbone: VisionTransformer, batch: Tensor) -> Path_ | None:
    """Return our network through ONNX Runtime's own executor, fp32, exported at the batch's shape."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  the exporter needs it
    except ImportError:
        return None

    class Cls(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, images: Tensor) -> Tensor:
            return self.backbone(images).cls

    program = torch.onnx.export(Cls().eval(), (batch,), dynamo=True, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        program.save(f"{folder}/model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def rates(paths: dict[str, Path_], batch: Tensor, *, repeats: int, limit_s: float) -> dict[str, float]:
    """Return images a second of each path: the median over rounds in which all run in turn."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    with torch.inference_mode():
        for run in paths.values():
            run(batch)
        started = time.perf_counter()
        for round_ in range(repeats):
            if round_ >= 3 and time.perf_counter() - started > limit_s:
                break
            for name, run in paths.items():
                before = time.perf_counter()
                run(batch)
                times[name].append(time.perf_counter() - before)
    return {name: len(batch) / median(seconds) for name, seconds in times.items()}


def cosines(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """Return the least and the mean cosine of class tokens."""
    values = F.cosine_similarity(found.double(), exact.double(), dim=1)
    return float(values.min()), float(values.mean())


def end_to_end(model: Model, sources: list[Path], *, count: int) -> tuple[float, float]:
    """Return images a second from JPEG files, and of the model alone on as many images right before and after."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            picture = Image.open(sources[number % len(sources)]).convert("RGB").resize((500, 375))
            picture.save(Path(folder) / f"{number:04}.jpg", quality=90)
        images = ImageSet.open(folder)
        batch = torch.from_numpy(np.stack([model.preprocessing(size=SIZE)(images.decode(i)) for i in range(8)]))

        def alone() -> float:
            started = time.perf_counter()
            for _ in range(count // 8):
                model.engine.encode(batch)
            return time.perf_counter() - started

        before = alone()
        started = time.perf_counter()
        for _ in model.stream_set(images, size=SIZE, batch_size=8):
            pass
        took = time.perf_counter() - started
        return count / took, count // 8 * 8 / ((before + alone()) / 2)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs, at least 32")
    parser.add_argument("--model", type=Path, help="model folder instead of random weights; only it is measured")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("foveal").setLevel(logging.INFO)
    sources = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(sources) < 32:
        parser.error(f"{arguments.images} holds {len(sources)} photographs; at least 32 are needed")
    sources = sources[:: len(sources) // 32][:32]
    prepare = Preprocess(mode="crop", resize_size=256, crop_size=SIZE, patch_size=14)
    photos = torch.from_numpy(np.stack([prepare(path) for path in sources]))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| network | batch | path | images/s | times transformers | min cosine | mean cosine |")
    print("|---|---|---|---|---|---|---|")
    for variant in ("vits",) if arguments.quick or arguments.model else ("vits", "vitb"):
        if arguments.model:
            backbone, card = load_model(arguments.model)
            variant = card.backbone.variant
        else:
            backbone = random_backbone(variant)
            card = Card(name=f"{variant}/14", backbone=backbone.config)
        exact = TorchEngine(backbone, device="cpu")
        engines = {"torch": exact}
        for name, fast in (("default", False), ("fast", True)):
            engine = open_engine(backbone, fast=fast, device="cpu", image_size=SIZE)
            engine = engine.settle([photos])
            engines[f"{name}: {engine.description['name']} {engine.description['precision']}"] = engine
        paths: dict[str, Path_] = {
            name: lambda batch, engine=engine: engine.encode(batch).cls for name, engine in engines.items()
        }
        peers = {} if arguments.model else {"transformers": transformers_peer(variant), "timm": timm_peer(variant)}
        paths |= {f"{name} fp32": peer for name, peer in peers.items() if peer is not None}
        reference = exact.encode(photos[-8:]).cls
        if not arguments.quick:
            paths["torch.compile fp32"] = compiled_path(backbone)
        for batch_size in (8,) if arguments.quick else (1, 8, 32):
            if not arguments.quick and (runtime := onnxruntime_path(backbone, photos[:batch_size])) is not None:
                paths["ONNX Runtime fp32"] = runtime
            repeats, limit_s = (3, 10.0) if arguments.quick else (9, 12.0)
            measured = rates(paths, photos[:batch_size], repeats=repeats, limit_s=limit_s)
            base = measured.get("transformers fp32")
            for name, rate in measured.items():
                ratio = f"{rate / base:.2f}" if base else "-"
                least, mean = cosines(paths[name](photos[-8:]), reference) if name in engines else (None, None)
                shown = "- | -" if least is None else f"{least:.6f} | {mean:.6f}"
                print(f"| {card.name} | {batch_size} | {name} | {rate:.2f} | {ratio} | {shown} |", flush=True)
        if variant != "vitb":
            chosen = next(engine for name, engine in engines.items() if name.startswith("default"))
            rate, alone = end_to_end(Model(chosen, card), sources, count=32 if arguments.quick else 96)
            print(f"\nend to end from JPEG, {card.name}: {rate:.2f} images/s, {rate / alone:.1%} of the model alone\n")


if __name__ == "__main__":
    main()
