"""Augmentations of the user's own, `augment: package.module:function`."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision import tv_tensors

import predict
import train
import valid
from datasets.augmentation import augmentation_named
from datasets.cases import CaseError, open_data_set
from datasets.loading import EpochSampler, Sample, SegmentationDataset, make_loader
from datasets.own_augmentation import OwnAugmentation
from tests.cases_on_disk import write_data_set
from tests.small_run import arguments
from utils.config import load_config, make_config
from utils.errors import UserError

OWN = "tests.own_augmentations"


def named(function: str) -> OwnAugmentation:
    augmentation = augmentation_named(f"{OWN}:{function}", keep_upright=False, image_size=32)
    assert isinstance(augmentation, OwnAugmentation)
    return augmentation


def samples(split: Path, function: str) -> SegmentationDataset:
    cases = open_data_set(split).train
    return SegmentationDataset(cases, 32, augmentation=named(function), cache_bytes=1 << 20)


def batches(dataset: SegmentationDataset, workers: int, context: str | None = None) -> list[Sample]:
    sampler, found = EpochSampler(len(dataset), 5), []
    loader = make_loader(dataset, 2, sampler=sampler, num_workers=workers)
    loader.multiprocessing_context = context
    for epoch in range(2):
        sampler.start_at(epoch)
        found += list(loader)
    return found


def test_it_is_applied_with_its_options_and_may_return_bytes(tmp_path: Path) -> None:
    split = write_data_set(tmp_path)
    plain = SegmentationDataset(open_data_set(split).train, 32)[0, 0]
    for p, expected in (("0", plain["image"]), ("1", plain["image"].flip(-1))):
        sample = samples(split, f"mirrored?p={p}")[0, 0]
        assert torch.equal(sample["image"], expected) and sample["image"].dtype == torch.float32
    assert torch.equal(sample["mask"], plain["mask"].flip(-1))
    assert sample["mask"].dtype == torch.float32


@pytest.mark.parametrize(("workers", "context"), [(2, "fork"), (1, "spawn")])
def test_samples_do_not_depend_on_who_loads_them(
    workers: int, context: str, tmp_path: Path
) -> None:
    """Random numbers of torch, numpy and Python alike."""
    dataset = samples(write_data_set(tmp_path, train=4), "shifted")
    here, there = batches(dataset, 0), batches(dataset, workers, context)
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["mask"], other["mask"])
    first, second = dataset[0, 0], dataset[1, 0]
    assert not torch.equal(first["mask"], second["mask"]), "another epoch, another draw"


def test_each_of_the_generators_is_seeded_anew() -> None:
    """Down by Python's, right by numpy's, dark by torch's: none of them stays where it was."""
    augmentation = named("shifted")
    mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[0, 0, 0] = 1
    places, lights = set(), set()
    for seed in range(20):
        torch.manual_seed(seed)
        image, moved = augmentation(
            tv_tensors.Image(torch.full((3, 32, 32), 255, dtype=torch.uint8)),
            tv_tensors.Mask(mask),
        )
        places.add(tuple(moved[0].nonzero()[0].tolist()))
        lights.add(image.max().item())
    assert len({row for row, _ in places}) > 5 and len({column for _, column in places}) > 5
    assert len(lights) > 5


def test_the_generators_of_everybody_else_are_left_alone(tmp_path: Path) -> None:
    augmentation = named("shifted")
    cases = open_data_set(write_data_set(tmp_path)).train
    dataset = SegmentationDataset(cases, 32, augmentation=augmentation)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    expected = random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    dataset[0, 0]
    augmentation.try_out()
    assert (random.random(), np.random.random(), torch.rand(()).item()) == expected  # noqa: NPY002


def test_it_is_given_types_that_torchvision_knows(tmp_path: Path) -> None:
    samples(write_data_set(tmp_path), "keeping_types")[0, 0]


def test_one_that_works_in_place_leaves_the_cached_images_as_they_are(tmp_path: Path) -> None:
    dataset = samples(write_data_set(tmp_path), "erased_in_place")
    assert dataset.cached_bytes
    once = dataset[0, 0]
    dataset[1, 0]
    again = dataset[0, 0]
    assert torch.equal(once["image"], again["image"]) and torch.equal(once["mask"], again["mask"])


def test_interpolation_may_overshoot_a_little(tmp_path: Path) -> None:
    split = write_data_set(tmp_path, train=2)
    for case, grey in enumerate((0, 255)):
        cv2.imwrite(
            str(split.parent / f"images/case_{case}.png"), np.full((64, 64, 3), grey, np.uint8)
        )
    dataset = samples(split, "overshooting")
    for case in range(2):
        assert (dataset[0, case]["image"] == case).all()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "missing",
            r"augment 'tests.own_augmentations:missing': expected a function in .*found no",
        ),
        ("mirrored?q=1", r"mirrored\?q=1': the function has no option 'q'; it takes p"),
        ("mirrored?image_size=8", "image_size cannot be an option"),
        ("nothing", r"nothing\(image_size=32\) returned a NoneType, expected a function or an obj"),
        ("returning?what=image alone", "a Image, expected a pair of image and mask"),
        ("returning?what=three", "gave a tuple, expected a pair"),
        ("returning?what=array", r"as image a ndarray of \(3, 32, 32\), expected a tensor \(3, 32"),
        (
            "returning?what=cropped",
            r"as image .* of \(3, 31, 31\), expected a tensor \(3, 32, 32\)",
        ),
        ("returning?what=flat mask", r"as mask .* of \(32, 32\), expected a tensor \(1, 32, 32\)"),
        (
            "returning?what=standardised",
            "an image of -2 to 2, expected uint8, or floats from 0 to 1",
        ),
        ("returning?what=nan", "an image of nan to nan, expected"),
        ("returning?what='255'", "an image of 0 to 255, expected"),
        ("returning?what=soft mask", "a mask with 0.5, expected 0 and 1: move masks by nearest"),
    ],
)
def test_what_cannot_be_used_is_told(function: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        named(function).try_out()


def test_the_one_of_the_docs_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    page = Path(__file__).parents[1] / "docs" / "models.md"
    (example,) = re.findall(r"```python\n([^`]*RandomPerspective[^`]*)```", page.read_text())
    (tmp_path / "my_augmentation.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    augmentation = OwnAugmentation("my_augmentation:build?strength=0.5", 32)
    augmentation.try_out()
    assert not caplog.messages
    image = tv_tensors.Image(torch.arange(3 * 32 * 32, dtype=torch.uint8).reshape(3, 32, 32))
    changed, _ = augmentation(image, tv_tensors.Mask(torch.ones(1, 32, 32, dtype=torch.uint8)))
    assert changed.shape == image.shape and not torch.equal(changed, image / 255)


def test_it_is_tried_out_before_the_training(tmp_path: Path, vae: Path) -> None:
    augment = f"augment={OWN}:returning?what=nan"
    with pytest.raises(UserError, match=r"what .*returning\(image_size=32, what='nan'\) returned"):
        train.main(arguments(tmp_path, vae, augment))
    assert not (tmp_path / "run").exists()


def test_an_image_that_it_fails_on_is_named(tmp_path: Path) -> None:
    split = write_data_set(tmp_path, train=2)
    cv2.imwrite(str(split.parent / "images/case_1.png"), np.zeros((64, 64, 3), np.uint8))
    dataset = samples(split, "fails_on_black")
    dataset[0, 0]
    with pytest.raises(CaseError, match=r"^case_1: what .* gave an image of nan to nan"):
        dataset[0, 1]


def test_draws_that_cannot_be_repeated_are_told(caplog: pytest.LogCaptureFixture) -> None:
    named("shifted").try_out()
    assert not caplog.messages
    named("darkened").try_out()
    assert "darkened(image_size=32) draws random numbers that do not follow" in caplog.text


def test_only_training_runs_it(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "mine.py"
    module.write_text("def turn(image_size):\n    return lambda image, mask: (image, mask)\n")
    train.main(arguments(tmp_path, vae, "augment=mine:turn", "epochs=1"))
    assert "augmentation: mine:turn\n" in capsys.readouterr().out
    module.write_text("raise SystemExit('imported')\n")
    monkeypatch.delitem(sys.modules, "mine")
    run = tmp_path / "run" / "epochs_1"
    assert load_config(run / "config.yaml").augment == "mine:turn"
    valid.main(["--run", str(run)])
    images = tmp_path / "blobs" / "images"
    predict.main(["--run", str(run), "--out", str(tmp_path / "masks"), str(images)])
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({}, "as published"),
        ({"keep_upright": True}, "as published, upright"),
        ({"augment": "strong"}, "strong"),
        ({"augment": "strong", "keep_upright": True}, "strong, upright"),
        ({"augment": False, "keep_upright": True}, "none"),
        ({"augment": f"{OWN}:mirrored?p=1"}, f"{OWN}:mirrored?p=1"),
    ],
)
def test_the_plan_says_how_images_are_augmented(
    overrides: dict[str, object], text: str, tmp_path: Path, vae: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    values = [f"{key}={value}" for key, value in overrides.items()]
    train.main([*arguments(tmp_path, vae, *values), "--dry-run"])
    assert f"\naugmentation: {text}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "value", ["weak", "published", "mine", "mine:", "a:b?c", "smp/Unet", 2, []]
)
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(UserError, match=rf"augment.*{re.escape(str(value))}"):
        make_config({"pickle_file_path": "x", "augment": value})


@pytest.mark.parametrize("value", [True, False, "strong", "a.b:c", "a:b?c=1&d=x"])
def test_values_that_the_config_takes(value: bool | str) -> None:
    assert make_config({"pickle_file_path": "x", "augment": value}).augment == value
