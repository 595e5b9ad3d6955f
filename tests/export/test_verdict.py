import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import Tokens, VisionTransformer
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import FovealError
from foveal.export import verdict
from foveal.export.verdict import HeadPair, bytes_of, judge, same_neighbour
from foveal.export.verdict_card import Verdict
from foveal.export.worst_layer import worst_layer

DEPTH = 4


@pytest.fixture(autouse=True)
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "_BUDGET_S", 0.0)


def _network(**changes: int) -> VisionTransformer:
    network = VisionTransformer(backbone_config("vit_nano", **({"image_size": 28, "depth": DEPTH} | changes)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            around = 1.0 if name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "gamma")) else 0.0
            parameter.copy_(around + 0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def _batches(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 28, 42, generator=generator) for size in sizes]


class Changed(TorchEngine):
    """Gives tokens that were changed."""

    def __init__(self, change: object, **changes: int) -> None:
        super().__init__(_network(**changes))
        self.change = change

    def encode(self, batch: Tensor) -> Tokens:
        return self.change(super().encode(batch))  # type: ignore[operator]

    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        if norm:
            return super().intermediate(batch, layers)
        raise FovealError("only the last tokens are kept")


def test_the_same_network_passes_with_cosine_1_and_says_so_as_rows_and_json() -> None:
    found = judge(
        TorchEngine(_network()), TorchEngine(_network()), _batches(3, 2), size_bytes=2_000_000, original_bytes=3_500_000
    )
    assert found.passed
    assert found.worst_layer is None
    assert found.num_images == 5
    assert found.shapes == [(28, 42)]
    assert (found.cls.min, found.patches.min, found.length, found.same_neighbour) == pytest.approx((1, 1, 1, 1))
    rows = {name: values for name, *values in found.rows()}
    assert rows["size, MB"] == ["2.0", "3.5"]
    assert rows["images/s, batches of 3"][0] == f"{found.export.images_per_s:.1f}"
    assert rows["engine"] == ["torch fp32", "torch fp32"]
    assert Verdict.model_validate_json(found.model_dump_json()) == found
    assert str(found) == "passed on 5 images: the limit is 0.999"


def test_images_of_a_second_size_are_compared_but_not_counted() -> None:
    first = _batches(3)
    second = [first[0][:2, :, :, :28]]

    def wrong_when_square(tokens: Tokens) -> Tokens:
        return tokens if tokens.patches.shape[1] == 6 else tokens._replace(cls=-tokens.cls)

    found = judge(Changed(wrong_when_square), TorchEngine(_network()), [*first, *second])
    assert (found.num_images, found.shapes) == (3, [(28, 28), (28, 42)])
    assert found.cls.min == pytest.approx(-1)
    assert found.same_neighbour == 1


def test_one_wrong_image_is_a_fault_however_many_are_right() -> None:
    def turned(tokens: Tokens) -> Tokens:
        cls = tokens.cls.clone()
        cls[0] = cls[0].flip(0)
        return tokens._replace(cls=cls)

    exact = TorchEngine(_network())
    found = judge(Changed(turned), exact, _batches(5))
    cls = exact.encode(_batches(5)[0]).cls
    cosine = float(cls[0] @ cls[0].flip(0) / cls[0].square().sum())
    assert found.cls.min == pytest.approx(cosine, abs=1e-6)
    assert found.cls.mean == pytest.approx((4 + cosine) / 5, abs=1e-6)
    assert not found.passed
    assert "the limit is 0.999" in found.reason
    assert str(found).startswith("refused on 5 images")


def test_cosines_of_1_do_not_hide_a_wrong_length() -> None:
    found = judge(
        Changed(lambda tokens: Tokens(*(1.1 * part for part in tokens))), TorchEngine(_network()), _batches(2)
    )
    assert found.cls.min == pytest.approx(1)
    assert found.length == pytest.approx(1.1)
    assert found.faults == ["tokens are 1.1000 times as long as the original's, allowed is 1 +- 0.0447"]


@pytest.mark.parametrize("part", Tokens._fields)
def test_one_kind_of_token_of_a_wrong_length_is_enough(part: str) -> None:
    def change(tokens: Tokens) -> Tokens:
        return tokens._replace(**{part: 0.9 * getattr(tokens, part)})

    found = judge(Changed(change, num_registers=2), TorchEngine(_network(num_registers=2)), _batches(2))
    assert found.length == pytest.approx(0.9)
    assert not found.passed


def test_tokens_that_are_not_finite_are_refused_and_written() -> None:
    found = judge(
        Changed(lambda tokens: Tokens(*(part * math.nan for part in tokens))), TorchEngine(_network()), _batches(2)
    )
    assert (found.cls.min, found.patches.mean, found.length, found.passed) == (0, 0, 0, False)
    assert Verdict.model_validate_json(found.model_dump_json()) == found


def test_other_shapes_are_an_error() -> None:
    with pytest.raises(
        FovealError, match=r"output registers of the export is \(2, 1, 48\), the original's \(2, 0, 48\)"
    ):
        judge(TorchEngine(_network(num_registers=1)), TorchEngine(_network()), _batches(2))


def test_same_neighbour_by_hand() -> None:
    exact = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    found = exact[[0, 2, 1, 3]]  # 0 stays and loses its neighbour; 3 keeps its own, now in another place
    assert same_neighbour(exact, exact) == 1
    assert same_neighbour(found, exact) == 0
    assert same_neighbour(exact * 7, exact) == 1
    assert same_neighbour(exact[:1], exact[:1]) is None


def test_any_copy_of_the_nearest_image_is_the_same_neighbour() -> None:
    exact = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.9, 0.1], [0.0, 1.0]])
    found = exact + torch.tensor([[0.0, 0.0], [0.0, 1e-3], [0.0, 0.0], [0.0, 0.0]])
    assert same_neighbour(found, exact) == 1


def test_heads_are_compared_by_class_and_by_depth() -> None:
    exact = torch.tensor([[3.0, 4.0], [4.0, 3.0]])
    logits = HeadPair("classification", lambda _: torch.tensor([[3.0, 4.0], [3.0, 4.0]]), lambda _: exact)
    depth = HeadPair("depth", lambda x: torch.full((2, 1, 28, 42), 2.5), lambda x: torch.full((2, 1, 28, 42), 2.0))
    close = HeadPair("segmentation", lambda _: exact + 0.01, lambda _: exact)
    engine = TorchEngine(_network())
    found = judge(engine, engine, _batches(2), heads={"kind": logits, "far": depth, "mask": close})
    kind, far = found.heads["kind"], found.heads["far"]
    assert kind.same_class == 0.5
    assert kind.error_max == pytest.approx(math.sqrt(2) / 5)
    assert kind.error == pytest.approx(math.sqrt(2) / 10)
    assert (far.mean_difference, far.error, far.same_class) == pytest.approx((0.5, 0.25, None))
    assert [fault.split(" are ")[0] for fault in found.faults] == [
        "the outputs of head kind",
        "the outputs of head far",
    ]


@pytest.mark.parametrize("limit", [0.0, 1.0, math.nan, -1])
def test_limit_out_of_range(limit: float) -> None:
    engine = TorchEngine(_network())
    with pytest.raises(FovealError, match="above 0 and below 1"):
        judge(engine, engine, _batches(2), limit=limit)


def test_no_images() -> None:
    engine = TorchEngine(_network())
    with pytest.raises(FovealError, match="--images"):
        judge(engine, engine, [])


@pytest.mark.parametrize("block", [0, 2, 3])
def test_the_block_that_was_broken_is_named(block: int) -> None:
    network = _network()
    with torch.no_grad():
        network.blocks[block].attn.proj.weight.mul_(1.5)
    found = judge(TorchEngine(network), TorchEngine(_network()), _batches(3), depth=DEPTH)
    assert found.worst_layer is not None
    assert found.worst_layer.name == f"blocks.{block}"
    assert f"the error begins in blocks.{block}" in found.reason
    cosines = list(found.worst_layer.cosine.values())
    assert len(cosines) == DEPTH + 1
    assert cosines[:block] == pytest.approx([1] * block)
    assert max(cosines[block:]) < 0.9999


def test_the_last_norm_can_be_the_worst() -> None:
    network = _network()
    with torch.no_grad():
        network.norm.bias.add_(1)
    found = worst_layer(TorchEngine(network), TorchEngine(_network()), _batches(2)[0], depth=DEPTH)
    assert found is not None
    assert found.name == "norm"


def test_an_export_without_tokens_within_has_no_worst_layer(caplog: pytest.LogCaptureFixture) -> None:
    candidate = Changed(lambda tokens: tokens._replace(cls=-tokens.cls))
    found = judge(candidate, TorchEngine(_network()), _batches(2), depth=DEPTH)
    assert not found.passed
    assert found.worst_layer is None
    assert "only the last tokens are kept" in caplog.text


def test_bytes_of_files_and_folders(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "sub").mkdir()
    (folder / "a").write_bytes(b"123")
    (folder / "sub" / "b").write_bytes(b"12345")
    assert (bytes_of(folder), bytes_of(folder / "a")) == (8, 3)
