import numpy as np
import pytest

from foveal.errors import FovealError
from foveal.features.packing import bytes_of, check_dtype, cosines, pack, unpack

VALUES = np.array([[[3.0, -127.0, 0.4], [0.0, 0.0, 0.0]], [[1.0, 0.5, -0.25], [1e5, 2e5, 3e5]]], np.float32)


def test_int8_has_one_scale_a_vector_and_half_a_step_of_error() -> None:
    packed = pack(VALUES, dtype="int8", name="patches")
    codes, scale = packed["patches"], packed["patches.scale"]
    assert codes.dtype == np.int8
    assert codes[0].tolist() == [[3, -127, 0], [0, 0, 0]]
    assert scale.shape == (2, 2)
    assert scale[0].tolist() == [1.0, 0.0]
    error = np.abs(unpack(codes, scale) - VALUES)
    assert (error <= scale[..., None] * 0.5001).all()
    assert codes.nbytes + scale.nbytes == 2 * bytes_of((2, 3), "int8")


def test_floats_come_back_as_rounded() -> None:
    small = VALUES[:, :1]
    assert np.array_equal(unpack(pack(small, dtype="float16", name="cls")["cls"], None), small.astype(np.float16))
    assert np.array_equal(unpack(pack(VALUES, dtype="float32", name="cls")["cls"], None), VALUES)
    assert bytes_of((2, 3), "float16") == 12
    assert bytes_of((2, 3), "float32") == 24


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_features_that_are_not_finite_are_refused(bad: float, dtype: str) -> None:
    with pytest.raises(FovealError, match="cls features hold NaN or infinity"):
        pack(np.array([[1.0, bad]], np.float32), dtype=dtype, name="cls")  # type: ignore[arg-type]


def test_features_beyond_float16_say_what_holds_them() -> None:
    with pytest.raises(FovealError, match=r"patches features reach 3e\+05, beyond float16; choose int8 or float32"):
        pack(VALUES, dtype="float16", name="patches")


def test_unknown_types_are_refused() -> None:
    with pytest.raises(FovealError, match="dtype='float8'; allowed are float32, float16, int8"):
        check_dtype("float8")


def test_cosines_of_vectors_and_of_zeros() -> None:
    a = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    b = np.array([[0.0, 2.0], [3.0, 3.0], [0.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(cosines(a, b), [0, 1, 1, 0], atol=1e-15)
