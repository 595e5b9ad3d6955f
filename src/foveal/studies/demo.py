"""The demo: real images in, a trained backbone out, and a page that shows what it learned."""

import base64
import io
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from torch import Tensor

import foveal
from foveal.backbone.weights import save_model
from foveal.errors import RunError
from foveal.evaluate.knn import pixel_features, run, run_pixels
from foveal.features.extract import Model, load
from foveal.features.neighbours import top_k
from foveal.features.pca import pca_picture
from foveal.features.pictures import GREEN, RED, Colour, picture_grid
from foveal.features.seen import see
from foveal.files import write_atomically
from foveal.images.imageset import ImageSet
from foveal.images.photographs import packaged_photographs
from foveal.pretrain.learner import build_networks
from foveal.pretrain.loop import Progress, model_card, pretrain
from foveal.pretrain.recipe import Recipe, load_recipe
from foveal.pretrain.run import read_metrics
from foveal.studies.crops import own_photographs, write_crops

_KS = (1, 10, 20)
_NEIGHBOURS = 5  # shown beside each held-out crop
_TASK = "task.json"


@dataclass(frozen=True)
class DemoResult:
    """Where the page, the trained model and the held-out crops are, and the kNN top-1 accuracies in percent by name."""

    page: Path
    model: Path
    held_out: Path
    accuracy: dict[str, float]
    seconds: float


def run_demo(
    out: Path,
    *,
    images: str | None = None,
    overrides: tuple[str, ...] = (),
    listener: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> DemoResult:
    """Pretrain a small backbone on crops of photographs and write a self-contained page about it.

    The task: which photograph does a held-out crop come from? Its region was never trained on, its scale and colours
    are changed. kNN with the training crops answers, for raw pixels, the untrained network and the trained teacher.

    Args:
        out: folder of the demo; an interrupted demo continues there.
        images: the user's own images instead of the packaged photographs.
        overrides: recipe overrides, key=value.
        listener: see `foveal.pretrain.loop.pretrain`.
        say: told in a sentence what comes next.

    Raises:
        FovealError: no photographs, or `out` belongs to something else.
    """
    started = time.monotonic()
    photographs = own_photographs(images) if images else packaged_photographs()
    train_folder, test_folder = _prepare(out, images or "packaged photographs", photographs, say)
    recipe = load_recipe("demo", [f"images={train_folder}", f"out={out / 'run'}", *overrides])
    train, test = ImageSet.open(train_folder), ImageSet.open(test_folder)
    untrained = _untrained(recipe, out / "untrained", train)
    say(f"pretraining on {len(train)} crops, {recipe.total_steps} steps of {recipe.batch_size} images")
    outcome = pretrain(recipe, listener=listener)
    if outcome.step < recipe.total_steps:
        raise RunError(f"the demo was stopped at step {outcome.step}; run the same command again to continue")
    trained = load(outcome.run / "model")
    say("measuring")
    rows = {
        "raw pixels": run_pixels(train, test, ks=_KS),
        "untrained network": run(untrained, train, test, ks=_KS),
        "trained teacher": run(trained, train, test, ks=_KS),
    }
    table = {name: [row.value for row in found if row.metric.endswith("top-1")] for name, found in rows.items()}
    say("drawing")
    examples = [photographs[name] for name in _spread(sorted(photographs), 8)]
    draw_pca(out, examples, {"untrained": untrained, "trained": trained})
    draw_neighbours(out, train, test, {"untrained": untrained, "trained": trained})
    page = _write_page(out, recipe, table, test, num_train=len(train), seconds=time.monotonic() - started)
    accuracy = {name: values[_KS.index(20)] for name, values in table.items()}
    return DemoResult(page, outcome.run / "model", test_folder, accuracy, time.monotonic() - started)


def _prepare(
    out: Path, source: str, photographs: dict[str, np.ndarray], say: Callable[[str], None]
) -> tuple[Path, Path]:
    """Write the crops, or find those of an interrupted demo of the same photographs."""
    task = {"images": source}
    folder, staging = out / "images", out / ".images.tmp"
    if (folder / _TASK).is_file():
        held = json.loads((folder / _TASK).read_text())
        if held != task:
            raise RunError(f"{out} holds a demo of {held['images']}; choose another --out")
        return folder / "train", folder / "test"
    if out.exists() and any(path.name != staging.name for path in out.iterdir()):
        raise RunError(f"{out} is not empty and not a demo; choose another --out")
    say("cutting photographs into crops")
    shutil.rmtree(staging, ignore_errors=True)
    write_crops(photographs, staging, train_each=110, test_each=40, size=64)
    (staging / _TASK).write_text(json.dumps(task))
    staging.rename(folder)
    return folder / "train", folder / "test"


def _untrained(recipe: Recipe, folder: Path, train: ImageSet) -> Model:
    """Save the network as it is before the first step, so that it can be compared with any verb."""
    _, teacher = build_networks(recipe)
    save_model(folder, teacher.backbone, model_card(recipe, step=0, images_hash=train.hash))
    return load(folder)


def draw_pca(out: Path, photographs: list[np.ndarray], models: dict[str, Model], *, size: int = 192) -> None:
    """Write pca_NAME.png for each model: photographs above the principal components of their patches.

    Args:
        out: folder.
        photographs: (H, W, 3) uint8 each.
        models: by name.
        size: side in pixels at which the models see them; the nearest multiple of the patch size is taken.
    """
    for name, model in models.items():
        patch = model.card.backbone.patch_size
        seen = [see(model, photograph, size=size // patch * patch, fit="crop") for photograph in photographs]
        pca_picture(seen, keep_foreground=False, cell_size=112).save(out / f"pca_{name}.png")


def draw_neighbours(out: Path, train: ImageSet, test: ImageSet, models: dict[str, Model], *, rows: int = 9) -> None:
    """Write neighbours_NAME.png for raw pixels and each model: held-out crops and their nearest training crops."""
    labels = test.labels or []
    queries = [labels.index(label) for label in _spread(sorted(set(labels)), rows)]
    chosen = test.subset(queries)
    features = {"pixels": (pixel_features(train).arrays["pixels"], pixel_features(chosen).arrays["pixels"])}
    for name, model in models.items():
        features[name] = (model.extract_set(train).arrays["cls"], model.extract_set(chosen).arrays["cls"])
    for name, (database, wanted) in features.items():
        _, nearest = top_k(wanted, database, k=min(_NEIGHBOURS, len(database)))
        neighbour_grid(train, chosen, nearest).save(out / f"neighbours_{name}.png")


def _write_page(
    out: Path, recipe: Recipe, table: dict[str, list[float]], test: ImageSet, *, num_train: int, seconds: float
) -> Path:
    """Write the page from the pictures in `out` and the numbers."""
    loss_curves([line for line in read_metrics(recipe.out) if "loss" in line]).save(out / "losses.png")
    template = jinja2.Template((resources.files("foveal") / "studies" / "demo.html").read_text(), autoescape=True)
    html = template.render(
        version=foveal.__version__,
        seconds=round(seconds),
        recipe=recipe,
        num_photographs=len(set(test.labels or [])),
        num_train=num_train,
        num_test=len(test),
        ks=_KS,
        table=table,
        verdict=verdict(table),
        pictures={path.stem: _data_url(path) for path in out.glob("*.png")},
    )
    write_atomically(out / "demo.html", html)
    return out / "demo.html"


def verdict(table: dict[str, list[float]]) -> list[str]:
    """Say in sentences what training improved and what it did not, for each k, from top-1 accuracies in percent."""
    sentences = []
    for position, k in enumerate(_KS):
        trained, untrained, pixels = (
            table[name][position] for name in ("trained teacher", "untrained network", "raw pixels")
        )
        for other, value in (("the untrained network", untrained), ("raw pixels", pixels)):
            gain = trained - value
            word = "better than" if gain > 0 else "NOT better than"
            sentences.append(
                f"k={k}: the trained teacher is {word} {other}: {trained:.1f} against {value:.1f} ({gain:+.1f})."
            )
    return sentences


def neighbour_grid(train: ImageSet, queries: ImageSet, neighbours: Tensor, *, cell: int = 64) -> Image.Image:
    """Draw each query and, beside it, its nearest train images: framed green where the photograph is the same.

    Args:
        train: image set that was searched; with labels.
        queries: the held-out images; with labels.
        neighbours: (Q, n) numbers in `train`, nearest first.
        cell: side of a picture in pixels.
    """
    train_labels, query_labels = train.labels or [], queries.labels or []
    pictures: list[list[np.ndarray]] = []
    frames: list[list[Colour | None]] = []
    for row, found in enumerate(neighbours.tolist()):
        pictures.append([queries.decode(row), *(train.decode(index) for index in found)])
        frames.append([None, *(GREEN if train_labels[index] == query_labels[row] else RED for index in found)])
    return picture_grid(pictures, frames=frames, cell_size=cell)


def loss_curves(metrics: list[dict[str, Any]]) -> Image.Image:
    """Draw every term of the objective against the step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.6), layout="constrained", dpi=110)
    titles = {
        "dino_local": "DINO, local",
        "dino_global": "DINO, global",
        "ibot": "iBOT",
        "koleo": "KoLeo",
        "knn": "kNN, %",
    }
    shown = [name for name in titles if any(name in line for line in metrics)]
    for number, name in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), number + 1)
        points = [(line["step"], line[name]) for line in metrics if name in line]
        axes.plot(*zip(*points, strict=True), linewidth=1.2)
        axes.set_title(titles[name], fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)


def _spread(names: list[str], count: int) -> list[str]:
    """Return up to `count` names, evenly spread over the list."""
    return [names[round(i)] for i in np.linspace(0, len(names) - 1, min(count, len(names)))]


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
