"""SSCD against transformers' ResNet-50, its pooling against the formula, and the files that it takes and refuses."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import foveal
from foveal.engine.foreign import architecture_of, load_foreign, load_foreign_folder
from foveal.engine.sscd_tower import SSCD, gem
from foveal.errors import FovealError
from foveal.files import sha256_of


@pytest.fixture(scope="module")
def network() -> SSCD:
    """Weights and running statistics with nothing hidden by a one or a zero."""
    network = SSCD().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "running_var" in name or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.0, generator=generator)
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.1, generator=generator)
            elif tensor.ndim > 1:
                tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
    return network


@pytest.fixture(scope="module")
def published(network: SSCD, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The names of the published files."""
    path = tmp_path_factory.mktemp("sscd") / "sscd.torchvision.pt"
    torch.save({f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}, path)
    return path


def renamed(name: str) -> str:
    """Return the name in transformers of a weight of torchvision's ResNet."""
    name = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
    name = re.sub(r"^bn1\.", "embedder.embedder.normalization.", name)
    if stage := re.match(r"layer(\d)\.(\d)\.", name):
        name = f"encoder.stages.{int(stage[1]) - 1}.layers.{stage[2]}.{name[stage.end() :]}"
        name = re.sub(r"conv(\d)\.", lambda m: f"layer.{int(m[1]) - 1}.convolution.", name)
        name = re.sub(r"bn(\d)\.", lambda m: f"layer.{int(m[1]) - 1}.normalization.", name)
        name = name.replace("downsample.0", "shortcut.convolution").replace("downsample.1", "shortcut.normalization")
    return name


def peer(network: SSCD) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    other = transformers.ResNetModel(transformers.ResNetConfig(downsample_in_bottleneck=False)).eval()
    other.load_state_dict(
        {renamed(name): tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")}
    )
    return other


def images(*, height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_descriptor_equals_another_resnet_pooled_by_the_formula(network: SSCD, published: Path) -> None:
    engine, _ = load_foreign(f"sscd:{published}")
    with torch.inference_mode():
        found = peer(network)(images()).last_hidden_state
        assert torch.allclose(network.feature_map(images()), found, rtol=1e-4, atol=1e-4)
        pooled = torch.stack([(row.double() ** 3).sum(dim=1) / 6 for row in found.flatten(2)]) ** (1 / 3)
        expected = pooled @ network.fc.weight.double().T + network.fc.bias.double()
        places = found.double().permute(0, 2, 3, 1) @ network.fc.weight.double().T + network.fc.bias.double()
    tokens = engine.encode(images())
    assert torch.allclose(tokens.cls.double(), expected / expected.norm(dim=1, keepdim=True), atol=1e-4)
    places = (places / places.norm(dim=-1, keepdim=True)).reshape(2, 6, 512)
    assert torch.allclose(tokens.patches.double(), places, atol=1e-4)
    assert abs(tokens.cls[0] @ tokens.cls[1]) < 0.999  # different images differ


def test_gem_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0], [3.0, 0.0]], [[5.0, 5.0], [5.0, 5.0]]]])
    assert gem(features, power=3).tolist() == [pytest.approx([9 ** (1 / 3), 5.0], abs=1e-5)]  # (1 + 8 + 27 + 0) / 4
    assert gem(features, power=1).tolist() == [pytest.approx([1.5, 5.0], abs=1e-5)]
    assert gem(torch.zeros(1, 1, 2, 3), power=3).item() == pytest.approx(1e-6, rel=1e-4)


def test_lightning_checkpoint_is_read_and_the_file_does_not_decide_the_hash(
    network: SSCD, published: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a#b.ckpt"
    names = {f"model.backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": names}, path)
    engine, card = load_foreign(f"sscd:{path}")
    assert engine.identity == load_foreign(f"sscd:{published}")[0].identity
    assert card.lineage == {"library": "torch", "weights": str(path)}
    assert card.licence.terms == "unknown"


def test_random_weights_are_the_same_each_time() -> None:
    state = torch.random.get_rng_state()
    first, second = (load_foreign("sscd:#random") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first[0].identity == second[0].identity
    assert (first[1].name, first[1].licence.terms, first[0].description["name"]) == ("sscd:#random", "own", "torch")


def test_card_has_the_published_preprocessing() -> None:
    model = foveal.load("sscd:#random")
    assert (model.card.resize_size, model.card.crop_size, model.card.backbone.width) == (288, 288, 512)
    assert model.preprocessing(size=(320, 320), fit="resize").resize_size == (320, 320)
    features = model.extract(torch.zeros(70, 45, 3, dtype=torch.uint8).numpy(), size=(64, 96), fit="resize")
    assert (features.cls.shape, features.patches.shape) == ((1, 512), (1, 2, 3, 512))


def test_folder_of_a_card_with_this_network_opens(published: Path, tmp_path: Path, network: SSCD) -> None:
    card = load_foreign(f"sscd:{published}")[1]
    variant = card.backbone.model_copy(update={"variant": "sscd:anything.pt"})
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    hashes = {"model.safetensors": sha256_of(tmp_path / "model.safetensors")}
    card = card.model_copy(update={"backbone": variant, "sha256": hashes})
    (tmp_path / "model.json").write_text(card.model_dump_json())
    engine, _ = load_foreign_folder(tmp_path)
    assert torch.equal(engine.encode(images()).cls, load_foreign(f"sscd:{published}")[0].encode(images()).cls)
    assert architecture_of("sscd:x.pt") == architecture_of("sscd:#random") != architecture_of("timm:x#random")


HINT = r"Of SSCD's published files, NAME\.torchvision\.pt is a state dict of this network"


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "sscd_disc_mixup.torchscript.pt"
    torch.jit.script(nn.Linear(2, 3)).save(str(path))
    with pytest.raises(FovealError, match=rf"is a TorchScript archive, which is code and is not run; .*{HINT}"):
        load_foreign(f"sscd:{path}")


def test_other_files_are_told_apart(network: SSCD, published: Path, tmp_path: Path) -> None:
    state = network.state_dict()
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    save_file(headless, tmp_path / "headless.safetensors")
    save_file(state | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "classes.safetensors")
    (tmp_path / "short.pt").write_bytes(published.read_bytes()[:70_000_000])
    for file, message in (
        ("headless.safetensors", "does not fit this network: missing fc.weight, missing fc.bias"),
        ("classes.safetensors", r"fc.weight is \(1000, 2048\), expected \(512, 2048\)"),
        ("short.pt", "is cut short or damaged"),
        ("none.pt", "does not exist; give a file of weights, or #random"),
    ):
        with pytest.raises(FovealError, match=rf"{message}.*{HINT}"):
            load_foreign(f"sscd:{tmp_path / file}")
    for source in ("sscd:", "sscd:#"):
        with pytest.raises(FovealError, match="names no file; give sscd:FILE, or sscd:#random"):
            load_foreign(source)
