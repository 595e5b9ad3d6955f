import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from foveal.backbone.weights import load_model
from foveal.engine.identity import identity_of
from foveal.errors import DivergedError, FovealError, RunError
from foveal.features.extract import Model, load
from foveal.finetune.data import Batch, DenseBatches
from foveal.finetune.loop import finetune, new_head
from foveal.finetune.network import Network
from foveal.finetune.settings import FinetuneSettings, finetune_settings
from foveal.pretrain.loop import Outcome, Progress
from foveal.pretrain.optimizer import parameter_groups
from foveal.pretrain.run import read_metrics
from foveal.pretrain.start.lora import merged
from foveal.pretrain.start.weights import StartWeights
from foveal.tasks.fit import fit_head
from foveal.tasks.head import Head, load_head
from foveal.tasks.kinds import head_card
from foveal.tasks.protocols import FitSettings
from foveal.tasks.samples import DenseSet, Masks, Pair

Start = Callable[[], StartWeights]
SETTINGS = FinetuneSettings(steps=6, batch_size=2, learning_rate=1e-3, crop_size=42)


def head_of(model: Model) -> Head:
    return new_head(head_card(model, "segmentation", "linear", classes=["dark", "bright"]), seed=0)


def tune(
    start: StartWeights,
    head: Head,
    halves: DenseSet,
    settings: FinetuneSettings,
    out: Path,
    listener: Callable[[Progress], None] | None = None,
) -> Outcome:
    return finetune(start, head, DenseBatches(halves, settings, start.card), settings, out=out, listener=listener)


def tensors_of(run: Path) -> dict[str, Tensor]:
    head = load_head(run / "head").network.state_dict()
    return load_model(run / "model")[0].state_dict() | {f"head.{name}": value for name, value in head.items()}


@pytest.mark.parametrize("changed", [{"drop_path": 0.3, "clip": 1.0}, {"lora_rank": 2, "precision": "bf16"}])
def test_interrupted_run_goes_on_to_the_bit(
    start: Start, model: Model, halves: DenseSet, tmp_path: Path, changed: dict[str, object]
) -> None:
    settings = finetune_settings("segmentation", steps=4, batch_size=2, learning_rate=1e-3, crop_size=28, **changed)
    whole = tune(start(), head_of(model), halves, settings, tmp_path / "whole")
    assert whole == Outcome(tmp_path / "whole", 4, None)

    def interrupt(progress: Progress) -> None:
        if progress.step == 2:
            signal.raise_signal(signal.SIGTERM)

    stopped = tune(start(), head_of(model), halves, settings, tmp_path / "run", interrupt)
    assert (stopped.step, stopped.stopped_by) == (2, signal.SIGTERM)
    assert not (tmp_path / "run" / "model").exists()
    steps: list[int] = []
    again = replace(settings, recompute=True)  # which changes no bit
    tune(start(), head_of(model), halves, again, tmp_path / "run", lambda progress: steps.append(progress.step))
    assert steps == [3, 4]
    ours, theirs = tensors_of(tmp_path / "run"), tensors_of(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [[line["loss"] for line in read_metrics(tmp_path / name)] for name in ("run", "whole")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_a_kill_without_warning_costs_the_steps_since_the_clock(
    start: Start, model: Model, halves: DenseSet, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.step == 4:
            raise Killed

    settings = finetune_settings("segmentation", steps=5, batch_size=2, crop_size=28, save_every_s=0)
    with pytest.raises(Killed):
        tune(start(), head_of(model), halves, settings, tmp_path / "run", kill)
    steps: list[int] = []
    tune(start(), head_of(model), halves, settings, tmp_path / "run", lambda progress: steps.append(progress.step))
    assert steps in ([4, 5], [5])  # the last checkpoint may have been on its way to the disk
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1, 2, 3, 4]


def test_fine_tuning_learns_what_a_frozen_backbone_does_not_show(start: Start, model: Model, tmp_path: Path) -> None:
    """Every pixel of a picture is of the class that a mark in its corner tells: patches have to look there."""
    pairs = []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(90, 110, (42, 42, 3)).astype(np.uint8)
        pixels[:14, :14] += 80 * np.uint8(number % 2)
        pair = Pair(tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png")
        Image.fromarray(pixels).save(pair.image)
        Image.fromarray(np.full((42, 42), number % 2, np.uint8)).save(pair.target)
        pairs.append(pair)
    samples = DenseSet(pairs, Masks(["dark", "bright"]))
    common = {"steps": 25, "batch_size": 6, "crop_size": 42, "scales": (1.0, 1.0), "distort": False}
    frozen = fit_head(model, head_of(model).card, samples, FitSettings(learning_rate=1e-2, **common))  # type: ignore[arg-type]
    tune(start(), head_of(model), samples, FinetuneSettings(learning_rate=1e-3, **common), tmp_path / "run")  # type: ignore[arg-type]
    last = [line["loss"] for line in read_metrics(tmp_path / "run")[-5:]]
    assert max(last) < 0.5 * frozen.card.lineage["last_loss"]  # type: ignore[operator]


def test_a_fitted_head_is_where_it_begins(start: Start, model: Model, halves: DenseSet, tmp_path: Path) -> None:
    fitted = fit_head(model, head_of(model).card, halves, FitSettings(steps=40, batch_size=4, learning_rate=0.03))
    for name, head in (("new", head_of(model)), ("fitted", fitted)):
        tune(start(), head, halves, SETTINGS, tmp_path / name)
    first = [read_metrics(tmp_path / name)[0]["loss"] for name in ("new", "fitted")]
    assert first[1] < 0.7 * first[0]


def test_result_is_a_model_with_its_head_and_keeps_licence_and_lineage(
    start: Start, model: Model, halves: DenseSet, tmp_path: Path
) -> None:
    tune(start(), head_of(model), halves, SETTINGS, tmp_path / "run")
    tuned, head = load(tmp_path / "run" / "model", engine="torch"), load_head(tmp_path / "run" / "head")
    pixels, target = halves.load(0)
    assert tuned.with_head(head).predict(pixels).shape == target.shape
    with pytest.raises(FovealError, match="was fitted on tiny, fine-tuned for segmentation"):
        model.with_head(head)
    card = tuned.card
    assert (card.licence.name, [parent.name for parent in card.parents]) == ("CC-BY-NC-4.0", ["tiny"])
    assert card.lineage["steps"] == 6
    assert card.lineage["start"]["name"] == "tiny"  # type: ignore[index]
    assert head.card.licence.name == "CC-BY-NC-4.0"
    assert head.card.lineage["kind"] == "linear"


def test_steps_are_those_of_plain_pytorch(start: Start, model: Model, halves: DenseSet, tmp_path: Path) -> None:
    settings = FinetuneSettings(
        steps=3, batch_size=2, learning_rate=1e-3, head_multiplier=2, weight_decay=0.3, crop_size=42, clip=0.5
    )
    backbone, head = start().backbone.train(), head_of(model).network.train()
    named = {**dict(backbone.named_parameters()), **{f"head.{n}": p for n, p in head.named_parameters()}}
    plain = ("bias", "norm", "gamma")
    optimizer = torch.optim.AdamW(
        [
            {"params": [p], "rate": 2.0 if n.startswith("head.") else 1.0, "weight_decay": decay}
            for n, p in named.items()
            for decay in [0.0 if n.endswith("bias") or any(word in n for word in plain) else 0.3]
        ]
    )
    for step, batch in enumerate(DenseBatches(halves, settings, model.card).of(range(3))):
        patches = backbone(batch.images).patches.transpose(1, 2).reshape(2, -1, 3, 3)
        logits = torch.nn.functional.interpolate(head.conv_seg(head.bn(patches)), size=(42, 42), mode="bilinear")
        loss = torch.nn.functional.cross_entropy(logits, batch.targets, ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / 3) ** 0.9 * group["rate"]
        optimizer.step()
    tune(start(), head_of(model), halves, settings, tmp_path / "run")
    found = tensors_of(tmp_path / "run")
    del named[
        "norm.bias"
    ]  # batch norm follows it: its gradient is 0 but for rounding, of which AdamW makes whole steps
    for name, wanted in named.items():
        torch.testing.assert_close(found[name], wanted.detach(), atol=1e-5, rtol=1e-4, msg=name)


def test_a_head_of_other_classes_and_masks_that_count_nowhere_are_refused(
    start: Start, model: Model, halves: DenseSet, tmp_path: Path
) -> None:
    other = new_head(head_card(model, "segmentation", "linear", classes=["a", "b"]), seed=0)
    with pytest.raises(FovealError, match="is for segmentation of 2 classes, the pictures for segmentation of 2, or"):
        tune(start(), other, halves, SETTINGS, tmp_path / "run")
    empty = DenseSet(halves.pairs, Masks(["dark", "bright"], frozenset({0, 1})))
    with pytest.raises(FovealError, match="no pixel of 5 train masks counts"):
        tune(start(), head_of(model), empty, SETTINGS, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_learning_rates_fall_from_block_to_block(start: Start, model: Model) -> None:
    network = Network(start().backbone, head_of(model), FinetuneSettings(layer_decay=0.5))
    rates = {
        name: group["lr_multiplier"]
        for group in parameter_groups(network, layer_decay=0.5, patch_embed_lr_multiplier=1.0)
        for name in group["names"]
    }
    wanted = {"pos_embed": 1 / 16, "patch_embed.proj.weight": 1 / 16, "blocks.0.attn.qkv.weight": 1 / 8}
    wanted |= {"blocks.1.norm1.weight": 1 / 4, "blocks.2.mlp.fc1.bias": 1 / 2, "norm.weight": 1}
    assert {name: rates[f"backbone.{name}"] for name in wanted} == wanted
    assert rates["head.conv_seg.weight"] == 1


def test_one_step_moves_head_and_blocks_at_their_rates(
    start: Start, model: Model, halves: DenseSet, tmp_path: Path
) -> None:
    # The first step of AdamW moves every weight that has a gradient by its rate: here without decay or warm-up.
    settings = FinetuneSettings(
        steps=1, batch_size=2, learning_rate=1e-4, head_multiplier=3, layer_decay=0.5, weight_decay=0, crop_size=42
    )
    before, head = start().backbone.state_dict(), head_of(model)
    drawn = {name: value.clone() for name, value in head.network.state_dict().items()}
    tune(start(), head, halves, settings, tmp_path / "run")
    after = tensors_of(tmp_path / "run")
    for name, rate in (("blocks.2.attn.proj.weight", 0.5e-4), ("blocks.0.attn.proj.weight", 0.125e-4)):
        assert (after[name] - before[name]).abs().median().item() == pytest.approx(rate, rel=0.02)
    moved = (after["head.conv_seg.weight"] - drawn["conv_seg.weight"]).abs().median().item()
    assert moved == pytest.approx(3e-4, rel=0.02)


def test_frozen_blocks_stay(start: Start, model: Model, halves: DenseSet, tmp_path: Path) -> None:
    settings = FinetuneSettings(steps=2, batch_size=2, learning_rate=1e-3, crop_size=42, freeze_blocks=2)
    tune(start(), head_of(model), halves, settings, tmp_path / "run")
    before, after = start().backbone.state_dict(), load_model(tmp_path / "run" / "model")[0].state_dict()
    moved = {name.rpartition("attn")[0] or name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith(("blocks.2.", "norm.")) for name in moved)
    assert {"blocks.2.", "norm.weight"} <= moved


def test_low_rank_changes_are_merged_into_the_model(
    start: Start, model: Model, halves: DenseSet, tmp_path: Path
) -> None:
    settings = finetune_settings("segmentation", steps=4, batch_size=2, lora_rank=3, crop_size=42, learning_rate=0.01)
    network = Network(start().backbone, head_of(model), settings)
    with torch.no_grad():
        for name, parameter in network.backbone.named_parameters():
            if name.endswith("up"):
                parameter.normal_(generator=torch.Generator().manual_seed(3)).mul_(0.1)
    images = torch.randn(2, 3, 42, 28, generator=torch.Generator().manual_seed(0))
    plain = merged(network.backbone)
    torch.testing.assert_close(plain(images).patches, network.backbone(images).patches, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(plain(images).patches, start().backbone(images).patches, atol=1e-2)
    tune(start(), head_of(model), halves, settings, tmp_path / "run")
    before, after = start().backbone.state_dict(), load_model(tmp_path / "run" / "model")[0].state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"blocks.{i}.attn.{part}.weight" for i in range(3) for part in ("qkv", "proj")}
    assert (
        torch.linalg.matrix_rank(after["blocks.0.attn.proj.weight"] - before["blocks.0.attn.proj.weight"], atol=1e-5)
        == 3
    )


def test_step_that_is_not_finite_ends_the_run_and_keeps_the_state(
    start: Start, model: Model, halves: DenseSet, tmp_path: Path
) -> None:
    class Broken(DenseBatches):
        def of(self, steps: range):  # type: ignore[no-untyped-def]
            for step, batch in zip(steps, super().of(steps), strict=True):
                yield Batch(batch.images * float("inf"), batch.targets) if step == 3 else batch

    settings = FinetuneSettings(steps=5, batch_size=2, crop_size=28, save_every_s=0)
    weights = start()
    data = Broken(halves, settings, weights.card)
    with pytest.raises(DivergedError, match=r"step 3 is not finite: loss nan.*the state after step 3 is kept"):
        finetune(weights, head_of(model), data, settings, out=tmp_path / "run")
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1, 2]
    assert (tmp_path / "run" / "checkpoints" / "step_00000003" / "manifest.json").is_file()


def test_folder_of_another_run_is_refused(start: Start, model: Model, halves: DenseSet, tmp_path: Path) -> None:
    tune(start(), head_of(model), halves, SETTINGS, tmp_path / "run")
    other = finetune_settings("segmentation", steps=7, batch_size=2, learning_rate=1e-3, crop_size=42)
    with pytest.raises(RunError, match="holds another run: steps was 6, is 7"):
        tune(start(), head_of(model), halves, other, tmp_path / "run")
    (tmp_path / "run" / "finetune.json").write_text("{")
    with pytest.raises(RunError, match=r"finetune\.json cannot be written or read"):
        tune(start(), head_of(model), halves, SETTINGS, tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    with pytest.raises(RunError, match="not empty and not a fine-tuning run"):
        tune(start(), head_of(model), halves, SETTINGS, tmp_path / "other")


def test_run_that_is_over_writes_its_result_again(start: Start, model: Model, halves: DenseSet, tmp_path: Path) -> None:
    tune(start(), head_of(model), halves, SETTINGS, tmp_path / "run")
    before = tensors_of(tmp_path / "run")
    (tmp_path / "run" / "head" / "head.json").unlink()
    (tmp_path / "run" / "head" / "head.safetensors").unlink()
    tune(start(), head_of(model), halves, SETTINGS, tmp_path / "run")
    after = tensors_of(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)
    backbone, card = load_model(tmp_path / "run" / "model")
    assert json.loads((tmp_path / "run" / "head" / "head.json").read_text())["backbone"] == identity_of(
        backbone, card.backbone
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layer_decay": 1.5}, "layer_decay=1.5; give a factor above 0, at most 1"),
        ({"drop_path": 1.0}, "drop_path=1.0; give a share"),
        ({"lora_rank": 0}, "lora_rank=0; it must be at least 1"),
        ({"head_multiplier": 0.0}, "head_multiplier=0.0, clip=None; both must be above 0"),
        ({"clip": float("nan")}, "head_multiplier=10.0, clip=nan; both must be above 0"),
        ({"freeze_blocks": -1}, "freeze_blocks=-1"),
        ({"precision": "fp16"}, "precision='fp16'; choose fp32 or bf16"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(FovealError, match=said.replace("(", r"\(")):
        finetune_settings("depth", **changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"freeze_blocks": 4}, "freeze_blocks=4 of a backbone with 3 blocks; give 3 or less"),
        ({"lora_rank": 49}, "lora_rank=49 is above the backbone's width 48"),
        ({"lora_rank": 2, "freeze_blocks": 3}, "lora_rank has no effect while all 3 blocks are frozen"),
    ],
)
def test_settings_that_do_not_fit_the_backbone_are_refused(
    start: Start, model: Model, changed: dict[str, object], said: str
) -> None:
    with pytest.raises(FovealError, match=said):
        Network(start().backbone, head_of(model), finetune_settings("segmentation", **changed))
