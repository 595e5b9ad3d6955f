from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import foveal
from foveal.errors import FovealError, ImageSetError, WeightsError
from foveal.features.extract import Model
from foveal.images.imageset import ImageSet
from foveal.tasks.classify import AttentiveClassifier, LinearClassifier, MlpClassifier, Tokens, joined
from foveal.tasks.fit_classes import drawn, fit_classifier, hold_out
from foveal.tasks.head import HeadCard, build_network, save_head
from foveal.tasks.kinds import KINDS, head_card
from foveal.tasks.protocols import fit_settings

KIND_NAMES = ("linear", "linear4", "mlp", "attentive")
COLOURS = ["blue", "green", "red"]


@pytest.fixture
def train(colours: Path) -> ImageSet:
    return ImageSet.open(colours / "train")


def _card(model: Model, kind: str) -> HeadCard:
    return head_card(model, "classification", kind, classes=COLOURS)


def _tokens(num_blocks: int = 1, *, batch: int = 2, patches: int = 3, width: int = 4) -> Tokens:
    generator = torch.Generator().manual_seed(0)
    return Tokens(
        torch.randn(batch, num_blocks, width, generator=generator),
        torch.randn(batch, patches, width, generator=generator),
    )


def test_kinds_are_whole() -> None:
    assert tuple(KINDS["classification"]) == KIND_NAMES


def test_linear_reads_class_tokens_and_the_mean_patch_token_in_order() -> None:
    tokens = _tokens(4)
    head = LinearClassifier(4, num_levels=4, num_classes=5)
    assert sorted(head.state_dict()) == ["bias", "weight"]
    inputs = torch.cat(
        [tokens.cls[:, 0], tokens.cls[:, 1], tokens.cls[:, 2], tokens.cls[:, 3], tokens.patches.mean(1)], 1
    )
    torch.testing.assert_close(head(tokens), inputs @ head.weight.T + head.bias)


def test_mlp_by_its_formula() -> None:
    head = MlpClassifier(4, num_classes=5).eval()
    with torch.no_grad():
        head.norm.running_mean.normal_()  # type: ignore[union-attr]
        head.norm.running_var.uniform_(1, 2)  # type: ignore[union-attr]
    inputs = (joined(_tokens()) - head.norm.running_mean) / (head.norm.running_var + head.norm.eps).sqrt()  # type: ignore[operator,union-attr]
    hidden = F.gelu(inputs @ head.hidden.weight.T + head.hidden.bias)
    torch.testing.assert_close(head(_tokens()), hidden @ head.linear.weight.T + head.linear.bias)


def test_attention_by_its_formula_and_in_any_order_of_patches() -> None:
    head = AttentiveClassifier(4, num_heads=2, num_classes=5).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    tokens = _tokens()
    weights = head.attention.in_proj_weight.split(4)
    biases = head.attention.in_proj_bias.split(4)
    seen = head.norm(torch.cat([tokens.cls, tokens.patches], dim=1))
    query = (head.query[0, 0] @ weights[0].T + biases[0]).unflatten(0, (2, 2))
    keys, values = ((seen @ w.T + b).unflatten(2, (2, 2)) for w, b in zip(weights[1:], biases[1:], strict=True))
    shares = (torch.einsum("hd,bnhd->bhn", query, keys) / 2**0.5).softmax(dim=2)
    gathered = torch.einsum("bhn,bnhd->bhd", shares, values).flatten(1)
    wanted = head.linear(head.gathered_norm(head.attention.out_proj(gathered)))
    torch.testing.assert_close(head(tokens), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head(tokens._replace(patches=tokens.patches.flip(1))), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_colours_are_learned_saved_and_told_apart(
    model: Model, train: ImageSet, colours: Path, tmp_path: Path, kind: str
) -> None:
    settings = fit_settings("classification", steps=40, batch_size=8, learning_rate=3e-3)
    fitted = fit_classifier(model, _card(model, kind), train, settings)
    assert fitted.head.card.lineage["num_images"] == 19
    assert fitted.accuracy == 100
    save_head(tmp_path / "head", fitted.head)
    predictor = model.with_head(foveal.load_head(tmp_path / "head"))
    paths = sorted((colours / "test").glob("*/*.png"))
    for path in paths:
        label = predictor.predict(path)
        assert label.name == path.parent.name
        assert 1 / 3 < label.probability <= 1
    probabilities = predictor.probabilities(paths)
    assert probabilities.shape == (9, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    larger = np.asarray(Image.open(paths[0]).resize((301, 177)))
    assert predictor.predict(larger).name == "blue"


@pytest.mark.parametrize("kind", ["linear4", "attentive"])
def test_head_from_features_in_memory_is_that_of_features_computed_anew(
    model: Model, train: ImageSet, kind: str
) -> None:
    settings = fit_settings("classification", steps=5, batch_size=8)
    remembered = fit_classifier(model, _card(model, kind), train, settings)
    anew = fit_classifier(model, _card(model, kind), train, settings, max_cache_bytes=0)
    assert anew.accuracy == remembered.accuracy
    for name, value in remembered.head.network.state_dict().items():
        torch.testing.assert_close(anew.head.network.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_interrupted_fit_goes_on_to_the_bit(model: Model, train: ImageSet, tmp_path: Path) -> None:
    settings = fit_settings("classification", steps=12, batch_size=8, save_every_s=0.0)
    whole = fit_classifier(model, _card(model, "mlp"), train, settings).head.network.state_dict()
    state = tmp_path / "state.safetensors"

    def stop(done: int, total: int) -> None:
        if done == 7:
            raise RuntimeError("a power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fit_classifier(model, _card(model, "mlp"), train, settings, state=state, progress=stop)
    steps: list[int] = []
    again = fit_classifier(
        model, _card(model, "mlp"), train, settings, state=state, progress=lambda done, _: steps.append(done)
    )
    assert steps == [8, 9, 10, 11, 12]
    assert state.is_file()  # until the head is kept
    for name, value in again.head.network.state_dict().items():
        assert torch.equal(value, whole[name])


def test_state_of_another_fit_is_refused(model: Model, train: ImageSet, tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"

    def stop(done: int, total: int) -> None:
        raise RuntimeError("a power cut")

    for rate in (1e-3, 2e-3):
        settings = fit_settings("classification", steps=3, batch_size=8, save_every_s=0.0, learning_rate=rate)
        error, message = (
            (RuntimeError, "power cut") if rate == 1e-3 else (FovealError, "state of a fit with another model")
        )
        with pytest.raises(error, match=message):
            fit_classifier(model, _card(model, "linear"), train, settings, state=state, progress=stop)


def test_a_tenth_is_held_out_and_every_class_keeps_an_image() -> None:
    labels = torch.tensor([0] * 50 + [1] * 2 + [2])
    for seed in range(20):
        kept, held_out = hold_out(labels, seed=seed)
        assert len(held_out) == 5
        assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(53))
        assert set(labels[kept].tolist()) == {0, 1, 2}
    assert len({tuple(hold_out(labels, seed=seed)[1].tolist()) for seed in range(20)}) > 10
    kept, held_out = hold_out(torch.arange(12), seed=0)  # one image a class
    assert (len(kept), len(held_out)) == (12, 0)


def test_every_image_is_drawn_once_an_epoch() -> None:
    kept = torch.tensor([2, 3, 5, 7, 11, 13, 17])
    settings = fit_settings("classification", batch_size=3)
    seen = torch.cat([drawn(step, kept, settings) for step in range(7)])
    for epoch in seen.split(7):
        assert sorted(epoch.tolist()) == kept.tolist()
    assert seen[:7].tolist() != seen[7:14].tolist()
    assert len(drawn(0, kept, fit_settings("classification", batch_size=100))) == 7


def test_classes_with_one_image_are_named_and_learned(
    model: Model, colours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in sorted((colours / "train" / "red").glob("*.png"))[1:]:
        path.unlink()
    settings = fit_settings("classification", steps=40, batch_size=8, learning_rate=3e-3)
    fitted = fit_classifier(model, _card(model, "linear"), ImageSet.open(colours / "train"), settings)
    assert "1 of 3 classes have one image, which is trained on and never held out: red" in caplog.text
    assert model.with_head(fitted.head).predict(colours / "test" / "red" / "0.png").name == "red"


def test_bad_images_are_left_out(model: Model, colours: Path) -> None:
    for name in ("blue", "red"):
        (colours / "train" / name / "3.png").write_bytes(b"no picture")
    images = ImageSet.open(colours / "train")
    settings = fit_settings("classification", steps=5, batch_size=8)
    remembered = fit_classifier(model, _card(model, "linear"), images, settings)
    anew = fit_classifier(model, _card(model, "linear"), images, settings, max_cache_bytes=0)
    torch.testing.assert_close(
        anew.head.network.state_dict()["weight"], remembered.head.network.state_dict()["weight"], rtol=1e-4, atol=1e-5
    )


def test_what_cannot_be_fitted_is_said(model: Model, other_model: Model, train: ImageSet, colours: Path) -> None:
    settings = fit_settings("classification", steps=1, batch_size=8)
    one = ImageSet.open(colours / "train").subset(range(7))
    with pytest.raises(ImageSetError, match="all 7 images are of the class blue"):
        fit_classifier(model, head_card(model, "classification", "linear", classes=["blue"]), one, settings)
    with pytest.raises(FovealError, match="crop_size=14 is for dense heads"):
        fit_classifier(model, _card(model, "linear"), train, fit_settings("classification", crop_size=14))
    with pytest.raises(FovealError, match="batch_size=1; give at least 2 images a step"):
        fit_classifier(model, _card(model, "mlp"), train, fit_settings("classification", batch_size=1))
    with pytest.raises(FovealError, match="the card names 2 classes, and the images have 3"):
        fit_classifier(model, head_card(model, "classification", "linear", classes=["a", "b"]), train, settings)
    with pytest.raises(FovealError, match="no classification head is called 'ms'; choose linear, linear4, mlp"):
        head_card(model, "classification", "ms", classes=["a", "b"])
    head = fit_classifier(model, _card(model, "linear"), train, settings).head
    with pytest.raises(WeightsError, match="fitted on tiny"):
        other_model.with_head(head)
    with pytest.raises(FovealError, match="no picture; give at least one"):
        model.with_head(head).probabilities([])


def test_network_comes_from_its_card(model: Model) -> None:
    for kind in KIND_NAMES:
        card = _card(model, kind)
        network = build_network(card).eval()
        width = model.card.backbone.width
        assert network(_tokens(len(card.layers), width=width)).shape == (2, 3)
    assert _card(model, "linear4").layers == [0, 1, 2, 3]
    assert _card(model, "attentive").settings["num_heads"] == model.card.backbone.num_heads
