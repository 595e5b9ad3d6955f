from typing import Any

import pytest
import torch

from foveal.errors import FovealError
from foveal.features.extract import Model
from foveal.features.tokens import array_names, check_tokens, encode_arrays
from foveal.images.imageset import ImageSet


def test_tokens_of_chosen_blocks_are_the_engine_s(model: Model, pictures: list, photos: Any) -> None:
    arrays = [model.preprocessing()(picture) for picture in pictures[:3]]
    batch = torch.stack([torch.from_numpy(array) for array in arrays])
    first, last = model.engine.intermediate(batch, [0, 1])
    found = encode_arrays(model.engine, arrays, tokens=["cls", "patches", "mean"], layers=[1, 0], patch_size=7)
    assert list(found) == array_names(["cls", "patches", "mean"], [1, 0])
    assert torch.equal(found["cls.layer0"], first.cls)
    assert torch.equal(found["patches.layer1"].flatten(1, 2), last.patches)
    assert torch.equal(found["mean.layer0"], first.patches.mean(dim=1))
    assert not torch.equal(found["cls.layer0"], found["cls.layer1"])
    plain = encode_arrays(model.engine, arrays, tokens=["cls"], patch_size=7)
    assert torch.equal(plain["cls"], found["cls.layer1"])  # the last block is the default


def test_sets_give_mean_and_layers_too(model: Model, photos: Any) -> None:
    found = model.extract_set(ImageSet.open(photos), what=("mean", "patches"), layers=(0,))
    assert list(found.arrays) == ["mean.layer0", "patches.layer0"]
    expected = found.arrays["patches.layer0"].flatten(1, 2).mean(dim=1)
    torch.testing.assert_close(found.arrays["mean.layer0"], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "layers", "message"),
    [
        ((), None, "choose one or more of cls"),
        (("cls", "cls"), None, "each once"),
        (("cls", "patch"), None, "tokens=cls,patch; .*did you mean 'patches'"),
        (("cls",), (2,), "layers=2; choose among the blocks 0 to 1"),
        (("cls",), (-1,), "layers=-1"),
        (("cls",), (), "layers=;"),
    ],
)
def test_tokens_and_blocks_that_are_not_there_are_named(model: Model, tokens: Any, layers: Any, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        check_tokens(tokens, layers, model.card.backbone)


def test_registers_of_a_model_without_are_refused(model: Model) -> None:
    bare = model.card.backbone.model_copy(update={"num_registers": 0})
    with pytest.raises(FovealError, match="has no registers"):
        check_tokens(("registers",), None, bare)
