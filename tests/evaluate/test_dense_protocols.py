import pytest

from foveal.errors import FovealError
from foveal.evaluate.dense_protocols import depth_protocol, segment_protocol
from foveal.evaluate.published import published_value


def test_published_masks() -> None:
    linear, multi = segment_protocol("linear", "ADE20K"), segment_protocol("ms", "Pascal VOC 2012")
    assert (linear.name, multi.name) == ("segment", "segment")
    assert (linear.fit.steps, linear.fit.batch_size, linear.fit.size, linear.fit.crop_size) == (40_000, 16, 512, 512)
    assert (linear.fit.scales, linear.scales, linear.flip) == ((0.5, 2.0), (1.0,), False)
    assert (linear.crop_size, linear.stride) == (512, 341)
    assert (multi.fit.size, multi.fit.crop_size, multi.fit.scales) == (640, 640, (1.0, 3.0))
    assert (multi.crop_size, multi.stride, multi.flip) == (640, 320, True)
    assert multi.scales == (1.0, 1.32, 1.73, 2.28, 3.0)
    assert segment_protocol("linear", "Cityscapes").fit.size is None


def test_published_depth() -> None:
    nyu, kitti, other = (depth_protocol("lin.1", data) for data in ("NYUd", "KITTI", "kitchen"))
    assert (nyu.name, nyu.fit.steps, nyu.fit.crop_size, nyu.flip) == ("depth", 38_400, (416, 544), True)
    assert (nyu.max_depth, nyu.crop) == (10.0, "nyu")
    assert (kitti.fit.crop_size, kitti.max_depth, kitti.crop) == ((352, 704), 80.0, "garg")
    assert (other.max_depth, other.crop) == (10.0, "none")


def test_what_differs_is_in_the_name_and_keeps_published_figures_away() -> None:
    changed = segment_protocol("linear", "ADE20K", steps=200, size="own", crop_size="whole", learning_rate=0.01)
    assert changed.name == "segment, 200 steps of 16, rate 0.01, own size, whole pictures"
    assert (changed.fit.size, changed.fit.crop_size, changed.crop_size) == (None, None, 512)
    small = segment_protocol("ms", "ADE20K", size=280, crop_size=140, batch_size=4)
    assert small.name == "segment, 40000 steps of 4, size 280, crops of 140"
    assert (small.crop_size, small.stride) == (140, 70)
    assert depth_protocol("dpt", "NYUd", max_depth=4, crop="none").name == "depth, up to 4 m, crop none"
    assert depth_protocol("dpt", "KITTI", crop_size=(200, 300), max_depth=80).name == "depth, crops of 200x300"
    assert segment_protocol("linear", "ADE20K", steps=40_000, crop_size=512, seed=3).name == "segment"
    for name, figure in (("segment", 44.3), (changed.name, None)):
        key = {"model": "dinov2_vits14", "data": "ADE20K", "metric": "linear mIoU"}
        assert published_value(**key, protocol=name) == figure


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(FovealError, match=r"no segmentation head is called 'lin.1'"):
        segment_protocol("lin.1", "ADE20K")
    with pytest.raises(FovealError, match=r"max_depth=0; the range begins at 0.001 m"):
        depth_protocol("lin.1", "NYUd", max_depth=0)
    with pytest.raises(FovealError, match=r"max_depth=inf; the range begins at 0.001 m, give its end in metres"):
        depth_protocol("lin.1", "NYUd", max_depth=float("inf"))
