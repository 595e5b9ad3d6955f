import numpy as np
import pytest
import torch

from foveal.engine.auto import AutoEngine, Candidate
from foveal.errors import FovealError
from foveal.features.attention import AttentionMaps, attention_maps, attention_picture
from foveal.features.extract import Model
from foveal.features.pictures import heat


def test_maps_are_the_rows_of_the_prefix_tokens_on_the_grid(model: Model) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (28, 42, 3), dtype=np.uint8)
    heads = model.card.backbone.num_heads
    whole = model.engine.attention(torch.from_numpy(model.preprocessing(fit="resize")(picture))[None], layer=0)[
        0
    ]  # (heads, 27, 27): class token, two registers, 4 x 6 patches
    maps = attention_maps(model, picture, layer=0)
    assert maps.cls.shape == (heads, 4, 6)
    assert maps.registers.shape == (2, heads, 4, 6)
    assert maps.cls.dtype == np.float32
    np.testing.assert_allclose(maps.cls.reshape(heads, 24), whole[:, 0, 3:], atol=1e-6)
    np.testing.assert_allclose(maps.registers[1].reshape(heads, 24), whole[:, 2, 3:], atol=1e-6)
    np.testing.assert_allclose(maps.cls[1, 2, 5], whole[1, 0, 3 + 2 * 6 + 5], atol=1e-6)
    np.testing.assert_array_equal(maps.pixels, picture)


def test_a_model_without_registers_has_no_register_maps(plain_model: Model, pictures: list[np.ndarray]) -> None:
    maps = attention_maps(plain_model, pictures[0])
    assert maps.registers.shape == (0, plain_model.card.backbone.num_heads, *maps.cls.shape[1:])
    with pytest.raises(FovealError, match="has no registers; leave the registers out"):
        attention_picture([maps], registers=True)


def test_an_engine_that_shows_no_attention_is_named(model: Model, pictures: list[np.ndarray]) -> None:
    class CompiledEngine:
        encode = model.engine.encode

    with pytest.raises(FovealError, match="CompiledEngine gives no attention weights; load"):
        attention_maps(Model(CompiledEngine(), model.card), pictures[0])  # type: ignore[arg-type]


def _maps(*heads: list[list[float]]) -> AttentionMaps:
    values = np.array(heads, dtype=np.float32)
    return AttentionMaps(np.full((4, 6, 3), 77, np.uint8), values, values[None] * 2, name="x")


def test_picture_shows_each_map_on_its_own_scale() -> None:
    maps = _maps([[0, 0.1, 0.2]] * 2, [[0.8, 0.4, 0]] * 2)
    picture = attention_picture([maps, maps], heads=True, registers=True, cell_size=60)
    # original, mean, two heads, one register; two rows of a label strip and 40 pixels
    assert picture.size == (5 * 60 + 4 * 4, 2 * (16 + 40) + 4)
    pixels = np.asarray(picture)[16:56]
    assert (pixels[:, :60] == 77).all()
    scale = heat(np.array([[0, 0.5, 1]]), low=0, high=1)[0]
    first, second = pixels[5, 128:188:20], pixels[5, 192:252:20]
    np.testing.assert_array_equal(first, scale)
    np.testing.assert_array_equal(second, scale[::-1])
    mean = heat(np.array([[0.4, 0.25, 0.1]]), low=0, high=0.4)[0]
    np.testing.assert_array_equal(pixels[5, 64:124:20], mean)
    np.testing.assert_array_equal(pixels[5, 256:316:20], mean)  # the register: twice as much, its own scale
    assert attention_picture([maps], cell_size=60).size == (124, 56)


def test_many_heads_take_several_rows() -> None:
    maps = _maps(*[[[0.1]]] * 12)
    assert attention_picture([maps], heads=True, cell_size=20).size == (8 * 20 + 7 * 4, 2 * 36 + 4)


def test_a_layer_too_many_is_named(model: Model, pictures: list[np.ndarray]) -> None:
    with pytest.raises(FovealError, match="layer=2 of a backbone with 2 blocks"):
        attention_maps(model, pictures[0], layer=2)


def test_constant_pictures_and_single_patches_are_drawn(model: Model) -> None:
    flat = np.full((5, 5, 3), 128, np.uint8)
    maps = attention_maps(model, flat, size=7)
    assert maps.cls.shape[1:] == (1, 1)
    first, second = (attention_picture([maps], heads=True, registers=True).tobytes() for _ in range(2))
    assert first == second


def test_an_engine_that_is_chosen_shows_the_attention_of_its_reference(
    model: Model, pictures: list[np.ndarray]
) -> None:
    exact = Candidate("torch", "fp32", "cpu", lambda *_: model.engine, exact=True)
    chosen = AutoEngine(model.engine.backbone, candidates=[exact], reference=model.engine, limit=0.9999)
    found = attention_maps(Model(chosen, model.card), pictures[0])
    np.testing.assert_array_equal(found.cls, attention_maps(model, pictures[0]).cls)
