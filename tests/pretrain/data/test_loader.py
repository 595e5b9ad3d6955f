"""The same bytes whatever the number of workers, with bad images among the good ones."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from foveal.errors import RecipeError
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import IMAGENET_MEAN, IMAGENET_STD
from foveal.pretrain.data.loader import MicroBatches, RawBatch, check_deal, micro_batches, to_batch
from foveal.pretrain.data.sampler import batch_indices
from foveal.pretrain.processes.parallel import World


def _all(batches: Iterable[RawBatch]) -> list[RawBatch]:
    return list(batches)


def _same(first: list[RawBatch], second: list[RawBatch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.global_crops, b.global_crops)
        and torch.equal(a.local_crops, b.local_crops)
        and torch.equal(a.masks, b.masks)
        and a.bad == b.bad
        and a.failure == b.failure
        for a, b in zip(first, second, strict=True)
    )


@pytest.fixture
def damaged(photos: Path) -> Path:
    (photos / "00.jpg").write_text("not an image")
    (photos / "04.jpg").write_bytes((photos / "04.jpg").read_bytes()[:300])
    return photos


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has processors
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_workers_change_nothing(tiny: Any, damaged: Path, num_workers: int) -> None:
    images = ImageSet.open(damaged)
    recipe = tiny()
    alone = _all(micro_batches(images, recipe, steps=range(4)))
    recipe = tiny(f"num_workers={num_workers}")
    assert _same(_all(micro_batches(images, recipe, steps=range(4))), alone)
    reasons = {bad.reason for batch in alone for bad in batch.bad}
    assert reasons == {"unknown_format", "truncated"}


def test_a_micro_batch_is_a_function_of_its_number(tiny: Any, photos: Path) -> None:
    images = ImageSet.open(photos)
    later = _all(micro_batches(images, tiny(), steps=range(2, 3)))
    assert _same(_all(micro_batches(images, tiny(), steps=range(3)))[4:], later)
    assert not _same(_all(micro_batches(images, tiny("seed=1"), steps=range(2, 3))), later)


def test_micro_batches_make_up_the_large_batch(tiny: Any, photos: Path) -> None:
    images = ImageSet.open(photos)
    small = MicroBatches(images, tiny())
    large = MicroBatches(images, tiny("micro_batch_size=4"))[0]
    for crops in ("global_crops", "local_crops"):
        parts = [getattr(small[n], crops) for n in range(2)]
        views = torch.cat([part.view(-1, 2, *part.shape[1:]) for part in parts], dim=1)
        assert torch.equal(views.flatten(0, 1), getattr(large, crops))


def test_shapes(tiny: Any, photos: Path) -> None:
    batch = MicroBatches(ImageSet.open(photos), tiny())[0]
    assert batch.global_crops.shape == (4, 32, 32, 3)
    assert batch.local_crops.shape == (6, 16, 16, 3)
    assert batch.masks.shape == (4, 16)
    assert batch.global_crops.dtype == torch.uint8
    assert MicroBatches(ImageSet.open(photos), tiny("views.num_local=0"))[0].local_crops.shape == (0, 16, 16, 3)


def test_an_epoch_shows_every_image_once(tiny: Any, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageSet.open(photos)
    seen: list[int] = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda index, **kw: seen.append(index) or decode(index, **kw))
    _all(micro_batches(images, tiny(), steps=range(6)))
    assert sorted(seen[:11]) == sorted(seen[11:22]) == list(range(11))


def test_a_bad_image_is_named_and_replaced_by_another(tiny: Any, damaged: Path) -> None:
    images = ImageSet.open(damaged)
    batches = _all(micro_batches(images, tiny(), steps=range(3)))
    bad = [bad for batch in batches for bad in batch.bad]
    assert {images.uri(entry.number) for entry in bad} == {"00.jpg", "04.jpg"}
    assert all(images.uri(entry.number) in entry.message for entry in bad)
    assert all(len(batch.global_crops) == 4 and not batch.failure for batch in batches)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_set_without_a_usable_image_is_told_as_a_value(tiny: Any, photos: Path, num_workers: int) -> None:
    for path in photos.iterdir():
        path.write_text("not an image")
    batch = next(iter(micro_batches(ImageSet.open(photos), tiny(f"num_workers={num_workers}"), steps=range(1))))
    assert batch.failure.startswith("no usable image found, the last: ")
    assert "Traceback" not in batch.failure
    assert sorted(bad.number for bad in batch.bad) == list(range(11))


def test_one_bad_image_alone(tiny: Any, photos: Path) -> None:
    for path in sorted(photos.iterdir())[1:]:
        path.unlink()
    (photos / "00.jpg").write_text("not an image")
    batch = MicroBatches(ImageSet.open(photos), tiny())[0]
    assert batch.failure
    assert [bad.number for bad in batch.bad] == [0]


def test_normalisation_by_hand(tiny: Any, photos: Path) -> None:
    raw = MicroBatches(ImageSet.open(photos), tiny())[0]
    batch = to_batch(raw, mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD), device=torch.device("cpu"))
    assert batch.global_crops.shape == (4, 3, 32, 32)
    assert batch.global_crops.is_contiguous()
    value = raw.global_crops[1, 5, 7, 2].item() / 255
    # one float32 multiply-add: 1e-6 of values up to 3
    assert batch.global_crops[1, 2, 5, 7].item() == pytest.approx((value - 0.406) / 0.225, abs=2e-6)
    assert torch.equal(batch.masks, raw.masks)


@pytest.mark.parametrize("size", range(1, 9))
def test_any_number_of_processes_shows_the_same_images_in_the_same_order(tiny: Any, photos: Path, size: int) -> None:
    """The numbers of every step, put together by rank, are those of one process, also from the middle of an epoch."""
    images, per_step, micro = ImageSet.open(photos), size * 3, 2
    recipe = tiny(f"batch_size={per_step * micro}", f"micro_batch_size={micro}")
    for steps in (range(7), range(3, 7)):
        dealt = [
            list(micro_batches(images, recipe, steps=steps, world=World(rank=rank, size=size)).sampler)
            for rank in range(size)
        ]
        order = [number for step in range(len(steps)) for one in dealt for number in one[3 * step : 3 * step + 3]]
        assert order == list(range(steps.start * per_step, steps.stop * per_step))
    samples = [
        sample
        for number in range(7 * per_step)
        for sample in zip(*batch_indices(number, batch_size=micro, num_images=len(images), seed=0), strict=True)
    ]
    whole_epochs = 7 * per_step * micro // len(images)
    assert len(samples) == len(set(samples))  # none twice in an epoch
    assert {(epoch, index) for epoch in range(whole_epochs) for index in range(len(images))} <= set(samples)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("size", "num_workers"), [(2, 0), (4, 1), (2, 3)])
def test_processes_and_workers_make_the_micro_batches_of_one(
    tiny: Any, damaged: Path, size: int, num_workers: int
) -> None:
    images = ImageSet.open(damaged)
    recipe = tiny("batch_size=8", f"num_workers={num_workers}")
    worlds = [World(rank=rank, size=size) for rank in range(size)]
    dealt = [_all(micro_batches(images, recipe, steps=range(1, 3), world=world)) for world in worlds]
    each = 4 // size
    order = [micro for step in range(2) for one in dealt for micro in one[each * step : each * (step + 1)]]
    assert _same(order, _all(micro_batches(images, tiny("batch_size=8"), steps=range(1, 3))))


def test_a_batch_that_cannot_be_dealt_is_refused_with_one_that_can(tiny: Any) -> None:
    check_deal(tiny("batch_size=8"), World(size=4))
    with pytest.raises(
        RecipeError, match=r"batch_size=8 is 1 micro-batch of 8, which .* 4 processes; use micro_batch_size=2"
    ):
        check_deal(tiny("batch_size=8", "micro_batch_size=8"), World(size=4))
    with pytest.raises(
        RecipeError, match=r"batch_size=8 is 4 micro-batches .* use a batch_size that is a multiple of 3"
    ):
        check_deal(tiny("batch_size=8"), World(size=3))
