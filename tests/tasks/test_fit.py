import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.errors import BadImageError, DivergedError, FovealError, ImageSetError, WeightsError
from foveal.evaluate.layouts.dense import open_depths, open_masks
from foveal.features.extract import Model
from foveal.tasks.depth import gradient_loss
from foveal.tasks.fit import check_targets, fit_head, loss_of
from foveal.tasks.head import Head, HeadCard
from foveal.tasks.kinds import head_card
from foveal.tasks.protocols import FitSettings
from foveal.tasks.samples import DenseSet, Depths, Masks, Pair


def card_of(model: Model, task: str, settings: dict[str, object]) -> HeadCard:
    backbone = model.card.backbone
    return HeadCard(
        name="fitted",
        task=task,  # type: ignore[arg-type]
        architecture="linear",
        settings={"num_levels": 1, **settings},
        layers=[backbone.depth - 1],
        norm=task == "segmentation",
        backbone=model.identity,
        backbone_name=model.card.name,
        width=backbone.width,
        depth=backbone.depth,
        classes=["dark", "bright"] if task == "segmentation" else [],
    )


@pytest.fixture
def halves(tmp_path: Path) -> DenseSet:
    """Pictures with a bright half, of two sizes; masks 0 dark, 1 bright, 255 along the border between them."""
    pairs = []
    for number in range(6):
        generator = np.random.default_rng(number)
        height, width = (42, 57) if number % 2 else (56, 42)
        border = int(generator.integers(14, 28))
        mask = (np.arange(width)[None] >= border).repeat(height, 0).astype(np.uint8)
        pixels = np.where(mask[:, :, None] > 0, 210, 40) + generator.integers(0, 30, (height, width, 3))
        mask[:, border] = 255
        pair = Pair(tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png")
        Image.fromarray(pixels.astype(np.uint8)).save(pair.image)
        Image.fromarray(mask).save(pair.target)
        pairs.append(pair)
    return DenseSet(pairs, Masks(["dark", "bright"]))


def same(first: Head, second: Head) -> bool:
    ours, theirs = first.network.state_dict(), second.network.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("crop_size", [None, (42, 35)])
def test_segmentation_head_learns_and_resumes_to_the_bit(
    model: Model, halves: DenseSet, tmp_path: Path, crop_size: tuple[int, int] | None
) -> None:
    settings = FitSettings(steps=24, batch_size=3, learning_rate=0.03, crop_size=crop_size, distort=False)
    card = card_of(model, "segmentation", {"num_classes": 2})
    whole = fit_head(model, card, halves, settings)
    pixels, target = halves.load(0)
    found = model.with_head(whole).predict(pixels)
    assert (found == target)[target >= 0].mean() > 0.9

    def interrupt(done: int, total: int) -> None:
        if done == 20:
            signal.raise_signal(signal.SIGINT)

    state = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit_head(model, card, halves, settings, state=state, progress=interrupt)
    assert state.is_file()
    steps: list[int] = []
    again = fit_head(model, card, halves, settings, state=state, progress=lambda done, _: steps.append(done))
    assert steps[0] == 22  # the step during which the signal came was finished
    assert same(whole, again)
    assert again.card == whole.card

    def no_step(done: int, total: int) -> None:
        raise AssertionError(done)

    # It stays until the head is kept, so that a full disk does not cost the fit.
    assert same(whole, fit_head(model, card, halves, settings, state=state, progress=no_step))


def test_interrupt_of_the_last_step_loses_nothing(model: Model, halves: DenseSet, tmp_path: Path) -> None:
    settings = FitSettings(steps=3, batch_size=2)
    card = card_of(model, "segmentation", {"num_classes": 2})
    state = tmp_path / "state.safetensors"

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit_head(model, card, halves, settings, state=state, progress=interrupt)
    again = fit_head(model, card, halves, settings, state=state)
    assert again.card == fit_head(model, card, halves, settings).card
    assert again.card.lineage["last_loss"] > 0  # type: ignore[operator]


def test_state_is_saved_by_the_clock_for_a_kill_without_warning(model: Model, halves: DenseSet, tmp_path: Path) -> None:
    settings = FitSettings(steps=6, batch_size=2, save_every_s=0)
    card = card_of(model, "segmentation", {"num_classes": 2})

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == 4:
            raise Killed

    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        fit_head(model, card, halves, settings, state=state, progress=kill)
    steps: list[int] = []
    again = fit_head(model, card, halves, settings, state=state, progress=lambda done, _: steps.append(done))
    assert steps == [5, 6]
    assert same(fit_head(model, card, halves, settings), again)


def test_fit_that_diverges_says_so_and_leaves_no_state(model: Model, halves: DenseSet, tmp_path: Path) -> None:
    settings = FitSettings(steps=5, batch_size=2, learning_rate=1e30, save_every_s=0)
    state = tmp_path / "state.safetensors"
    with pytest.raises(DivergedError, match=r"of the fit is not finite: loss nan, .* lower learning rate than 1e\+30"):
        fit_head(model, card_of(model, "segmentation", {"num_classes": 2}), halves, settings, state=state)
    assert not state.exists()


def test_state_of_other_settings_is_refused(model: Model, halves: DenseSet, tmp_path: Path) -> None:
    card = card_of(model, "segmentation", {"num_classes": 2})
    state = tmp_path / "state.safetensors"

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_head(model, card, halves, FitSettings(steps=4, batch_size=2, save_every_s=0), state=state, progress=kill)
    with pytest.raises(FovealError, match="another model, data or settings"):
        fit_head(model, card, halves, FitSettings(steps=5, batch_size=2, save_every_s=0), state=state)
    assert state.is_file()
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(WeightsError, match=rf"{state}, the state of a fit, is damaged; remove it to begin again"):
        fit_head(model, card, halves, FitSettings(steps=4, batch_size=2, save_every_s=0), state=state)


def test_depth_head_learns_and_passes_over_unknown_depth(model: Model, tmp_path: Path) -> None:
    pairs = []
    for number in range(4):
        bright = (np.arange(56) >= 20 + 4 * number)[None].repeat(42, 0)
        depth = np.where(bright, 1500, 3000).astype(np.uint16)
        depth[:9] = 0
        pair = Pair(tmp_path / f"{number}.png", tmp_path / f"{number}_depth.png")
        Image.fromarray(np.where(bright, 220, 30).astype(np.uint8)).save(pair.image)
        Image.fromarray(depth).save(pair.target)
        pairs.append(pair)
    samples = DenseSet(pairs, Depths())
    card = card_of(model, "depth", {"min_depth": 0.001, "max_depth": 5.0, "num_bins": 16})
    head = fit_head(model, card, samples, FitSettings(steps=80, batch_size=4, learning_rate=0.05))
    pixels, target = samples.load(0)
    found = model.with_head(head).predict(pixels)
    known = target > 0
    assert target.max() == pytest.approx(3)
    assert np.sqrt(((found - target)[known] ** 2).mean()) < 0.6 * target[known].std()


def test_steps_are_of_pictures_of_all_sizes(model: Model, halves: DenseSet) -> None:
    card = card_of(model, "segmentation", {"num_classes": 2})
    heads = {
        count: fit_head(model, card, DenseSet(halves.pairs[:count], halves.reader), FitSettings(steps=1, batch_size=2))
        for count in (1, 2)
    }
    losses = [head.card.lineage["last_loss"] for head in heads.values()]
    assert losses[0] != losses[1]
    assert all(loss == pytest.approx(np.log(2), abs=0.1) for loss in losses)  # a mean, not a sum over the sizes


def test_gradients_count_half_for_the_decoder_alone_and_the_mean_alone_at_first(model: Model) -> None:
    generator = torch.Generator().manual_seed(0)
    found, target = (torch.rand(2, 13, 11, generator=generator) + 0.5 for _ in range(2))
    g = torch.log(found + 1e-3) - torch.log(target + 1e-3)
    mean = 0.15 * g.mean() ** 2
    for kind, share in (("lin.1", 0.0), ("dpt", 0.5)):
        loss = loss_of(head_card(model, "depth", kind), warm_up=7)
        gradients = share * gradient_loss(found[:, None], target[:, None], max_depth=10)
        torch.testing.assert_close(loss(found[:, None], target, 6), mean.sqrt() + gradients)
        torch.testing.assert_close(loss(found[:, None], target, 7), (g.var() + mean).sqrt() + gradients)


def test_targets_without_an_answer_are_refused_before_any_work(model: Model, halves: DenseSet, tmp_path: Path) -> None:
    masks = DenseSet(halves.pairs, Masks(["dark", "bright"], frozenset({0, 1, 255})))
    with pytest.raises(ImageSetError, match="no pixel of 6 train masks counts"):
        fit_head(model, card_of(model, "segmentation", {"num_classes": 2}), masks, FitSettings())
    blank = Image.fromarray(np.full((56, 42), 255, np.uint8))
    for pair in halves.pairs[:5]:  # one mask of six is enough
        blank.save(pair.target)
    check_targets(card_of(model, "segmentation", {"num_classes": 2}), halves)
    pair = Pair(halves.pairs[0].image, tmp_path / "far.png")
    Image.fromarray(np.full((56, 42), 20_000, np.uint16)).save(pair.target)
    card = card_of(model, "depth", {"min_depth": 0.001, "max_depth": 10.0})
    with pytest.raises(ImageSetError, match=r"a depth above 0 and up to 10 m, the highest is 20 m; check the unit"):
        fit_head(model, card, DenseSet([pair], Depths()), FitSettings())
    Image.fromarray(np.zeros((56, 42), np.uint16)).save(pair.target)
    with pytest.raises(ImageSetError, match="has a depth above 0, the highest is 0 m"):
        check_targets(card_of(model, "depth", {"max_depth": None}), DenseSet([pair], Depths()))


def test_masks_out_of_range_are_refused_with_their_file(halves: DenseSet) -> None:
    path = halves.pairs[2].target
    mask = np.array(Image.open(path))
    mask[0, 0] = 7
    Image.fromarray(mask).save(path)
    with pytest.raises(BadImageError, match=r"2_mask\.png holds the value 7; allowed are 0 to 1 for 2 classes"):
        halves.target(2)
    assert DenseSet(halves.pairs, Masks(["a", "b"], frozenset({7, 255}))).target(2)[0, 0] == -1


def test_targets_of_another_kind_or_size_are_refused(halves: DenseSet, tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="depth is a 16-bit grey PNG"):
        DenseSet(halves.pairs, Depths()).target(0)
    swapped = [Pair(halves.pairs[0].image, halves.pairs[1].target)]
    with pytest.raises(BadImageError, match=r"0\.png has 42 x 56 pixels, .*1_mask\.png 57 x 42"):
        DenseSet(swapped, halves.reader).load(0)


def test_layouts_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match=r"holds nothing; a mask for every picture is read from images/ and masks/"):
        open_masks(tmp_path / "absent")
    for part, count in (("train", 3), ("val", 2)):
        for number in range(count):
            for folder in (part, f"{part}annot"):
                path = tmp_path / folder / f"{number}.png"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(np.full((4, 5), number, np.uint8)).save(path)
    data = open_masks(tmp_path, ignored=[2])
    assert [len(data.train), len(data.test)] == [3, 2]
    assert list(data.train.reader.classes) == ["class 0", "class 1"]  # type: ignore[union-attr]
    assert data.train.target(2).tolist() == [[-1] * 5] * 4
    (tmp_path / "valannot" / "1.png").unlink()
    with pytest.raises(ImageSetError, match=r"1 of 4 files are missing, first .*valannot/1\.png"):
        open_masks(tmp_path)


def test_lists_of_kitti_are_in_its_unit_and_pass_over_none(tmp_path: Path) -> None:
    for name in ("input/a.png", "input/b.png", "gt_depth/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((2, 3), 512, np.uint16)).save(tmp_path / name)
    for split in ("train", "test"):
        (tmp_path / f"kitti_eigen_{split}.txt").write_text("a.png a.png 721.5\nb.png None 721.5\n")
    data = open_depths(tmp_path)
    assert (data.name, len(data.train)) == ("KITTI", 1)
    assert data.test.target(0).tolist() == [[2.0] * 3] * 2


def test_real_folders_open(real_images: Path) -> None:
    data = open_depths(real_images / "redkitchen")
    assert len(data.train) + len(data.test) == 63
    assert max(pair.image.name for pair in data.train.pairs) < min(pair.image.name for pair in data.test.pairs)
    pixels, depth = data.test.load(0)
    assert pixels.shape[:2] == depth.shape == (480, 640)
    assert 0.3 < np.median(depth[depth > 0]) < 5
