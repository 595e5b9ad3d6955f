import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.backbone.weights import save_model
from foveal.errors import BadImageError, FovealError, ImageSetError, WeightsError
from foveal.features.extract import Model
from foveal.images.imageset import ImageSet
from foveal.images.ledger import BadImageLedger
from foveal.images.preprocess import Preprocess


def test_features_are_the_engine_s_tokens_of_the_preprocessed_picture(model: Model, pictures: list[np.ndarray]) -> None:
    features = model.extract(pictures[:2])
    preprocess = Preprocess(resize_size=32, crop_size=28, patch_size=7)
    tokens = model.engine.encode(torch.from_numpy(np.stack([preprocess(p) for p in pictures[:2]])))
    assert torch.equal(features.cls, tokens.cls)
    assert torch.equal(features.registers, tokens.registers)
    assert torch.equal(features.patches.flatten(1, 2), tokens.patches)
    assert features.patches.shape == (2, 4, 4, 48)
    assert features.registers.shape == (2, 2, 48)


def test_paths_pictures_and_arrays_can_be_mixed(model: Model, pictures: list[np.ndarray], photos: Path) -> None:
    path = photos / "dog" / "0.png"
    features = model.extract([pictures[0], Image.fromarray(pictures[0]), path, str(path)], batch_size=3)
    assert features.cls.shape == (4, 48)
    # batches of 3 and 1: another number of rows may sum in another order
    torch.testing.assert_close(features.cls, features.cls[:1].expand(4, -1), atol=1e-5, rtol=0)


def test_a_single_picture_is_a_batch_of_one(model: Model, pictures: list[np.ndarray], photos: Path) -> None:
    for single in (pictures[0], Image.fromarray(pictures[0]), photos / "dog" / "0.png", str(photos / "dog" / "0.png")):
        assert model.extract(single).cls.shape == (1, 48)


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({}, (4, 4)),
        ({"size": 42}, (6, 6)),
        ({"fit": "resize"}, (5, 7)),  # 33 x 51: 4.7 and 7.3 patches
        ({"fit": "pad"}, (5, 8)),
        ({"fit": "resize", "size": 21}, (3, 5)),  # 21 x 32: 4.6 patches
        ({"fit": "pad", "size": 22}, (4, 5)),  # 22 x 34
    ],
)
def test_each_way_of_fitting_gives_its_grid(
    model: Model, pictures: list[np.ndarray], options: dict[str, Any], grid: tuple[int, int]
) -> None:
    assert model.extract(pictures[0], **options).patches.shape == (1, *grid, 48)


def test_crop_of_another_size_keeps_the_margin_of_the_card(model: Model) -> None:
    assert model.preprocessing(size=56).resize_size == 64
    assert model.preprocessing().resize_size == 32


@pytest.mark.parametrize("fit", ["crop", "resize", "pad"])
def test_odd_sizes_never_crash(model: Model, fit: Any) -> None:
    for height, width in [(1, 1), (1, 50), (2, 3), (13, 14), (15, 29), (97, 5)]:
        features = model.extract(np.full((height, width, 3), 9, dtype=np.uint8), fit=fit)
        assert features.patches.isfinite().all()


def test_different_grids_say_what_to_do(model: Model, pictures: list[np.ndarray]) -> None:
    with pytest.raises(FovealError, match=r"different patch grids \(5 x 7, 6 x 4\).*use fit='crop'"):
        model.extract(pictures[:2], fit="resize")
    with pytest.raises(FovealError, match=r"different patch grids"):
        model.extract(pictures[:2], fit="resize", batch_size=1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "is no image"),
        (7, "7 is no image; give a path"),
        ([7], "an image of type int"),
        ("nowhere.png", "nowhere.png cannot be read"),
        (np.zeros((3, 9, 9), dtype=np.uint8), "channels come last"),
        (np.zeros((9, 9, 3)), "float64"),
        (torch.zeros(2, 3, 9, 9), "an image of type Tensor"),
    ],
)
def test_what_is_no_picture_is_explained(model: Model, images: Any, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        model.extract(images)


@pytest.mark.parametrize(
    ("options", "message"), [({"size": 30}, "30 is not a multiple of"), ({"fit": "squash"}, "squash")]
)
def test_wrong_options_are_named(model: Model, pictures: list[np.ndarray], options: dict, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        model.extract(pictures[0], **options)


def test_features_can_be_trained_on(model: Model, pictures: list[np.ndarray]) -> None:
    head = torch.nn.Linear(48, 2)
    head(model.extract(pictures[0]).cls).sum().backward()
    assert head.weight.grad is not None


def test_a_set_gives_the_features_of_its_readable_images(
    model: Model, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = ImageSet.open(photos)
    seen: list[tuple[int, int]] = []
    found = model.extract_set(
        images, what=("cls", "patches"), batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    names = [images.uri(i) for i in found.indices.tolist()]
    assert names == ["cat/1.png", "cat/3.png", "dog/0.png", "dog/2.png", "dog/4.png"]
    expected = model.extract([photos / name for name in names])
    torch.testing.assert_close(found.arrays["cls"], expected.cls, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.arrays["patches"], expected.patches, atol=1e-5, rtol=0)
    assert set(found.arrays) == {"cls", "patches"}
    assert sum(found.bad.values()) == 1
    assert "1 of 6 images skipped" in caplog.text
    assert seen[-1] == (6, 6)


def test_cls_of_mixed_sizes_keep_their_order(model: Model, photos: Path) -> None:
    images = ImageSet.open(photos).subset([0, 4, 1, 0, 5, 4, 1])  # sizes return after others
    found = model.extract_set(images, fit="resize")
    assert len(found.indices) == 7
    for row, index in enumerate(found.indices.tolist()):
        alone = model.extract(photos / images.uri(index), fit="resize").cls[0]
        torch.testing.assert_close(found.arrays["cls"][row], alone, atol=1e-5, rtol=0)
    with pytest.raises(FovealError, match="different patch grids"):
        model.extract_set(images, what=("patches",), fit="resize")


def test_bad_images_go_to_the_ledger(model: Model, photos: Path, tmp_path: Path) -> None:
    images = ImageSet.open(photos)
    ledger = BadImageLedger(tmp_path / "bad.jsonl", len(images))
    model.extract_set(images, ledger=ledger)
    assert "dog/1_damaged.png" in ledger
    with pytest.raises(ImageSetError, match="1 of 6 images are bad"):
        model.extract_set(images, ledger=BadImageLedger(tmp_path / "strict.jsonl", len(images), max_bad_share=0))


def test_a_set_without_one_readable_image_is_an_error(model: Model, photos: Path) -> None:
    images = ImageSet.open(photos)
    damaged = [i for i in range(len(images)) if "damaged" in images.uri(i)]
    with pytest.raises(ImageSetError, match="none of the 1 images can be read"):
        model.extract_set(images.subset(damaged))
    with pytest.raises(ImageSetError, match="none of the 0 images can be read"):
        model.extract_set(images.subset([]))


def test_decoding_stays_at_most_two_batches_ahead(model: Model, photos: Path) -> None:
    class Counting(ImageSet):
        decoded = 0

        def decode(self, index: int, **options: Any) -> np.ndarray:
            Counting.decoded += 1
            return super().decode(0)

    plain = ImageSet.open(photos)
    images = Counting(plain.subset([0] * 40).rows, root=plain.root)
    stream = model.stream_set(images, batch_size=2, bad=Counter())
    next(stream)
    assert Counting.decoded <= 6  # the batch given out, and two more
    stream.close()
    assert Counting.decoded <= 6


@pytest.mark.parametrize("options", [{"what": ()}, {"what": ("cls", "pixels")}, {"batch_size": 0}, {"num_threads": 0}])
def test_impossible_requests_are_named(model: Model, photos: Path, options: dict[str, Any]) -> None:
    with pytest.raises(FovealError, match=r"tokens=|batch_size="):
        model.extract_set(ImageSet.open(photos), **options)


def test_load_gives_the_model_that_was_saved(model: Model, pictures: list[np.ndarray], tmp_path: Path) -> None:
    save_model(tmp_path / "model", model.engine.backbone, model.card)
    loaded = foveal.load(tmp_path / "model", device="cpu")
    assert isinstance(loaded, foveal.Model)
    assert torch.equal(loaded.extract(pictures).cls, model.extract(pictures).cls)
    with pytest.raises(WeightsError, match="is not a model folder"):
        foveal.load(tmp_path)


def test_damaged_file_in_extract_is_an_error_with_its_reason(model: Model, photos: Path) -> None:
    with pytest.raises(BadImageError):
        model.extract(photos / "dog" / "1_damaged.png")


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, foveal, foveal.cli.main; foveal.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_unknown_attributes_of_the_package_are_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        _ = foveal.missing  # type: ignore[attr-defined]


def test_dicom_without_its_reader_is_skipped_among_photographs_and_the_extra_named(
    model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (photos / "scan.dcm").write_bytes(bytes(128) + b"DICM and so on")
    found = model.extract_set(ImageSet.open(photos))
    assert found.bad == {"corrupt": 1, "needs_extra": 1}
    assert "1 needs_extra for TIFF bands or DICOM: pip install 'foveal[tiff,dicom]'" in caplog.text
    (tmp_path / "scans").mkdir()
    (photos / "scan.dcm").rename(tmp_path / "scans" / "scan.dcm")
    with pytest.raises(ImageSetError, match=r"none of the 1 images can be read .*pip install 'foveal\[tiff,dicom\]'"):
        model.extract_set(ImageSet.open(tmp_path / "scans"))
