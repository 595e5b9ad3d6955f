"""`foveal export openvino`: the IR runs like the model, in full and in half precision."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import foveal
from foveal.backbone.weights import load_model
from foveal.cli.main import main
from foveal.engine.openvino_graph import import_openvino
from foveal.errors import FovealError
from foveal.export.card import ExportError, read_export
from foveal.export.openvino_ir import IrEngine
from foveal.tasks.head import Head, build_network, save_head
from foveal.tasks.kinds import head_card

Save = Callable[..., Path]


def _export(*options: object) -> int:
    return main(["export", "openvino", *map(str, options)])


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-5), ("fp16", 1e-2)])
def test_ir_gives_the_tokens_of_the_model(
    save_tiny: Save, few_images: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    model = save_tiny(num_registers=2, card={"licence": "MIT"})
    out = tmp_path / "out"
    assert _export(model, "--out", out, "--precision", precision, "--images", few_images) == 0
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "model.bin", "model.xml"]
    card = read_export(out)
    assert (card.precision, card.licence.name, card.refused) == (precision, "MIT", None)
    assert [one.name for one in card.outputs] == ["cls", "patches", "registers"]
    backbone, _ = load_model(model)
    engine = IrEngine(out)
    assert engine.identity == card.identity
    for count, height, width in ((1, 35, 35), (3, 14, 63)):
        images = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            wanted = backbone(images)
        for found, exact in zip(engine.encode(images), wanted, strict=True):
            torch.testing.assert_close(found, exact, atol=tolerance, rtol=0)
        with torch.no_grad():
            inside = backbone.intermediate(images, (0, 1), norm=False)
        for ours, theirs in zip(engine.intermediate(images, (0, 1), norm=False), inside, strict=True):
            for found, exact in zip(ours, theirs, strict=True):
                torch.testing.assert_close(found, exact, atol=3 * tolerance, rtol=0)
    with pytest.raises(FovealError, match="the last block only"):
        engine.intermediate(images, 1)
    licence = import_openvino().Core().read_model(out / "model.xml").get_rt_info(["foveal"]).value
    assert '"MIT"' in licence.replace("\\", "")


def test_half_precision_takes_half_the_bytes(save_tiny: Save, few_images: Path, tmp_path: Path) -> None:
    model = save_tiny()
    for precision in ("fp32", "fp16"):
        assert _export(model, "--out", tmp_path / precision, "--precision", precision, "--images", few_images) == 0
    sizes = [(tmp_path / precision / "model.bin").stat().st_size for precision in ("fp32", "fp16")]
    assert 1.9 < sizes[0] / sizes[1] < 2.1


def test_heads_are_in_the_ir(save_tiny: Save, few_images: Path, tmp_path: Path) -> None:
    folder = save_tiny()
    model = foveal.load(folder, engine="torch")
    card = head_card(model, "segmentation", "linear", classes=["sky", "road"])
    head = Head(build_network(card).eval(), card)
    torch.nn.init.normal_(head.network.conv_seg.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    save_head(tmp_path / "ground", head)
    assert _export(folder, "--out", tmp_path / "out", "--head", tmp_path / "ground", "--images", few_images) == 0
    images = torch.randn(2, 3, 21, 28, generator=torch.Generator().manual_seed(0))
    found = IrEngine(tmp_path / "out").outputs(images, ["ground"])["ground"]
    torch.testing.assert_close(torch.from_numpy(found), model.with_head(head).scores(images), atol=1e-4, rtol=0)
    verdict = read_export(tmp_path / "out").verdict
    assert verdict is not None
    assert list(verdict["heads"]) == ["ground"]


def test_files_that_are_no_ir_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not exist; foveal export openvino writes it"):
        IrEngine(tmp_path)
    (tmp_path / "model.xml").write_text("nonsense")
    with pytest.raises(ExportError, match=r"model\.xml is no IR of foveal export"):
        IrEngine(tmp_path)
