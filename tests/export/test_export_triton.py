"""A Triton repository: its configuration fits the graph, and its programs say what foveal says."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import triton_fakes as fakes
import yaml
from PIL import Image

import foveal
from foveal.backbone.card import Card
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import save_model
from foveal.cli.main import main
from foveal.errors import FovealError
from foveal.export.card import read_export
from foveal.export.triton import export_triton
from foveal.export.triton_sizing import DEVICES, batching, images_per_s
from foveal.features.extract import Model
from foveal.tasks.head import Head, build_network, save_head
from foveal.tasks.kinds import head_card

Save = Callable[..., Path]
KINDS = {"classes": ("classification", "linear"), "masks": ("segmentation", "linear")}


def _export(*options: object) -> int:
    return main(["export", "triton", *map(str, options)])


def _refused(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    assert _export(*options) == 2
    return capsys.readouterr().err


def _draw(network: torch.nn.Module) -> None:
    """Set every parameter and statistic to a random number."""
    generator = torch.Generator().manual_seed(0)
    for key, values in network.state_dict().items():
        if values.is_floating_point():
            drawn = torch.randn(values.shape, generator=generator)
            values.copy_(drawn.abs() + 0.5 if key.endswith("running_var") else 0.2 * drawn)


def _save_heads(folder: Path, model: Model) -> list[Path]:
    folders = []
    for name, (task, kind) in KINDS.items():
        card = head_card(model, task, kind, classes=["sky", "road", "tree"])  # type: ignore[arg-type]
        network = build_network(card).eval()
        _draw(network)
        save_head(folder / name, Head(network, card))
        folders.append(folder / name)
    return folders


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, few_images: Path) -> Path:
    """A model with registers, two heads, and `out`, their repository for the Python backend."""
    folder = tmp_path_factory.mktemp("triton")
    backbone = VisionTransformer(
        backbone_config("vit_nano", depth=2, patch_size=7, image_size=35, num_registers=2)
    ).eval()
    _draw(backbone)
    card = Card(name="model", backbone=backbone.config, crop_size=35, resize_size=40, licence="own")
    save_model(folder / "model", backbone, card)
    heads = _save_heads(folder, foveal.load(folder / "model"))
    wanted = {"heads": list(map(str, heads)), "backend": "python", "gpu": "none"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foveal.export.verdict._BUDGET_S", 0.0)  # one call instead of a second of calls
        export_triton(folder / "model", folder / "out", images=few_images, **wanted)
    return folder


@pytest.fixture
def repository(place: Path) -> Path:
    return place / "out"


@pytest.fixture
def backend_utils(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fakes.backend_utils())
    monkeypatch.setattr(sys, "path", list(sys.path))  # a repository's own part of foveal goes in front of it


def test_configuration_fits_the_graph(repository: Path) -> None:
    session = onnxruntime.InferenceSession(repository / "backbone/1/model.onnx", providers=["CPUExecutionProvider"])
    fields = fakes.config_of(repository, "backbone")
    for said, found in (("input", session.get_inputs()), ("output", session.get_outputs())):
        wanted = [
            {
                "name": one.name,
                "data_type": "TYPE_FP32",
                "dims": [size if isinstance(size, int) else -1 for size in one.shape[1:]],
            }
            for one in found
        ]
        assert fakes.all_of(fields, said) == wanted
    ensemble = fakes.config_of(repository, "ensemble")
    outputs = [{**one, "dims": [-1, *one["dims"]]} for one in fakes.all_of(fields, "output")]
    assert fakes.all_of(ensemble, "output") == outputs
    assert [one["name"] for one in outputs] == ["cls", "patches", "registers", "classes", "masks"]
    (images,) = fakes.all_of(fakes.config_of(repository, "preprocess"), "output")
    assert images == {"name": "images", "data_type": "TYPE_FP32", "dims": [-1, 3, 35, 35]}


def test_card_and_licence_travel_with_the_repository(repository: Path) -> None:
    card = read_export(repository)
    assert (card.format, card.built, card.refused) == ("triton", True, None)
    assert [head.name for head in card.heads] == ["classes", "masks"]
    assert {"preprocess/1/model.py", "backbone/1/model.py", "backbone/1/model.onnx", "ensemble/config.pbtxt"} <= set(
        card.sha256
    )
    assert "Weights: model, own (own terms)\n" in (repository / "LICENCE.txt").read_text()


def test_preprocess_alone_makes_what_foveal_makes(repository: Path, place: Path, tmp_path: Path) -> None:
    """In a process that finds NumPy and Pillow, but not foveal."""
    generator, file = np.random.default_rng(0), tmp_path / "picture.png"
    Image.fromarray(generator.integers(0, 256, (61, 83, 4), dtype=np.uint8), "RGBA").save(file)
    packages = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    script = "import sys; sys.path.append(sys.argv.pop(1)); sys.path.insert(0, sys.argv.pop(1)); "
    script += "import triton_fakes; triton_fakes.main()"
    command = [sys.executable, "-I", "-S", "-c", script, packages, Path(fakes.__file__).parent]
    subprocess.run([*command, repository, file, tmp_path / "made.npy"], check=True, timeout=60)
    expected = foveal.load(place / "model").preprocessing()(file)
    assert np.array_equal(np.load(tmp_path / "made.npy"), expected[None])


@pytest.mark.usefixtures("backend_utils")
def test_bad_picture_spoils_no_other_request(repository: Path, few_images: Path) -> None:
    program = fakes.opened(repository, "preprocess")
    good = (few_images / "0.png").read_bytes()
    rows = ([good, b"no picture"], [good], [good] * 9, [])
    requests = [fakes.Request(["images"], encoded=np.array(row, dtype=object)) for row in rows]
    bad, fine, many, none = program.execute(requests)
    assert bad.error.code == fakes.TritonError.INVALID_ARG
    assert "encoded[1]: the bytes start with" in bad.error.message
    assert fine.error is None
    assert fine.outputs["images"].shape == (1, 3, 35, 35)
    assert "9 pictures in a request; give 1 to 8" in many.error.message
    assert "0 pictures" in none.error.message


@pytest.mark.usefixtures("backend_utils")
def test_backbone_gives_each_request_its_own(repository: Path, place: Path) -> None:
    images = torch.randn(5, 3, 35, 42, generator=torch.Generator().manual_seed(0))
    requests = [
        fakes.Request(["cls", "masks"], images=images[:2].numpy()),
        fakes.Request(["cls"], images=images[2:].numpy()),
    ]
    first, second = fakes.opened(repository, "backbone").execute(requests)
    model = foveal.load(place / "model")
    found = torch.from_numpy(np.concatenate([first.outputs["cls"], second.outputs["cls"]]))
    torch.testing.assert_close(found, model.engine.encode(images).cls, rtol=1e-4, atol=1e-4)
    masks = model.with_head(foveal.load_head(place / "masks")).scores(images[:2])
    torch.testing.assert_close(torch.from_numpy(first.outputs["masks"]), masks, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("backend_utils")
def test_backbone_refuses_sides_that_are_no_multiples(repository: Path) -> None:
    request = fakes.Request(["cls"], images=np.zeros((1, 3, 35, 36), np.float32))
    (answer,) = fakes.opened(repository, "backbone").execute([request])
    assert answer.error.message == "images: 35 x 36 pixels; give multiples of the patch size, 7"


def test_tensorrt_comes_with_the_command_that_builds_its_plan(
    save_tiny: Save, few_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    out = tmp_path / "out"
    assert _export(save_tiny(), "--out", out, "--backend", "tensorrt", "--gpu", "l40s", "--images", few_images) == 0
    fields = dict(fakes.config_of(out, "backbone"))
    assert (fields["platform"], fields["default_model_filename"]) == ("tensorrt_plan", "model.plan")
    assert f"--maxShapes=images:{fields['max_batch_size']}x3x35x35" in (out / "backbone/1/build.sh").read_text()
    assert dict(fields["instance_group"]) == {"count": 2, "kind": "KIND_GPU"}
    assert read_export(out).built is False


def test_bands_come_without_a_picture_to_warm_up_on(save_tiny: Save, few_images: Path, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    bands = np.random.default_rng(0).integers(0, 256, (3, 44, 48, 5), dtype=np.uint8)
    (tmp_path / "bands").mkdir()
    for number, values in enumerate(bands):
        tifffile.imwrite(tmp_path / f"bands/{number}.tif", values, photometric="minisblack", planarconfig="contig")
    export_triton(save_tiny(channels=5), tmp_path / "out", images=tmp_path / "bands")
    assert not (tmp_path / "out/preprocess/warmup").exists()
    assert fakes.all_of(fakes.config_of(tmp_path / "out", "preprocess"), "model_warmup") == []


def test_batches_follow_from_operations() -> None:
    """ViT-S/14 at 224: 12.25 GFLOP; L4 in fp16: 0.4 * 121e12 / 12.25e9 = 3,951 images/s, 64 of them in 16.2 ms."""
    small, giant = backbone_config("vits"), backbone_config("vitg")
    assert images_per_s(small, 224, DEVICES["l4"], half=True) == pytest.approx(3951, rel=0.002)
    found = batching(small, 224, DEVICES["l4"], half=True)
    assert (found.preferred, found.max_batch, found.delay_us) == ((32, 64), 64, 4000)
    # ViT-g/14: some 580 GFLOP; L4 in TF32: 0.4 * 60e12 / 580e9 = 41 images/s, of which one fits into 25 ms.
    found = batching(giant, 224, DEVICES["l4"], half=False)
    assert (found.preferred, found.max_batch) == ((1,), 8)
    assert batching(giant, 224, DEVICES["none"], half=False).images_per_s is None


def test_bad_input_is_refused_before_anything_is_written(
    save_tiny: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = save_tiny(), tmp_path / "out"
    (other_head,) = _save_heads(tmp_path / "heads", foveal.load(save_tiny("other", depth=1)))[:1]
    assert "exists; choose another place" in _refused(capsys, model, "--out", model)
    assert "was fitted on other" in _refused(capsys, model, "--out", out, "--head", other_head)
    assert "did you mean 'onnx'?" in _refused(capsys, model, "--out", out, "--backend", "onxn")
    assert "did you mean 'l40s'?" in _refused(capsys, model, "--out", out, "--gpu", "l40")
    assert "TensorRT needs a GPU" in _refused(capsys, model, "--out", out, "--backend", "tensorrt", "--gpu", "none")
    with pytest.raises(FovealError, match="--gpu 'l5' is not known; choose none, l4, l40s"):
        export_triton(model, out, gpu="l5")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'foveal[export]'" in _refused(capsys, model, "--out", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads", "model", "other"]


def test_pods_have_probes_and_no_rights() -> None:
    text = (Path(__file__).parents[2] / "deploy/triton/kubernetes.yaml").read_text()
    deployment = next(one for one in yaml.safe_load_all(text) if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    probes = [container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")]
    assert probes == ["/v2/health/ready", "/v2/health/ready", "/v2/health/live"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
