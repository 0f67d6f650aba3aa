from __future__ import annotations

import io
import itertools
import json
import logging
import shutil
import struct
from collections import Counter
from colorsys import rgb_to_hsv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from datasets.augmentation import (
    RandomGamma,
    RandomQuarterTurn,
    published_augmentation,
    strong_augmentation,
)
from datasets.cases import (
    find_split_file,
    open_data_set,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
)
from datasets.image_files.decoding import AS_STORED, decode, read_pixels
from datasets.image_files.headers import ImageError
from datasets.image_files.masks import aspect_ratio_differs, binary_mask, decode_mask
from datasets.loading import (
    EpochSampler,
    Sample,
    SegmentationDataset,
    make_loader,
)
from datasets.prepared import read_metadata_groups
from engine.build import training_sets
from engine.training_cases import training_cases_from
from tests.cases_on_disk import write_data_set
from tests.dataset_archives import turned
from utils.config import make_config
from utils.errors import UserError


def collect(workers: int, cache: int = 1 << 20, start: int = 0, *, split: Path) -> list[dict]:
    dataset = SegmentationDataset(
        open_data_set(split).train,
        32,
        augmentation=published_augmentation(),
        seed=5,
        noise_shape=(4, 4, 4),
        noise_probability=1.0,
        cache_bytes=cache,
    )
    sampler = EpochSampler(len(dataset), 5)
    loader = make_loader(dataset, 2, sampler=sampler, num_workers=workers)
    batches = []
    for epoch in range(2):
        sampler.start_at(epoch, start)
        batches += list(loader)
    return batches


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_noise_is_drawn_for_each_sample(tmp_path: Path, probability: float) -> None:
    cases = open_data_set(write_data_set(tmp_path, train=20)).train
    dataset = SegmentationDataset(cases, 8, noise_shape=(4, 1, 1), noise_probability=probability)
    sampler, noise = EpochSampler(len(dataset), 0), []
    for epoch in range(15):
        sampler.start_at(epoch, 0)
        noise += [sample["noise"] for sample in make_loader(dataset, 1, sampler=sampler)]
    drawn = torch.stack([each for each in noise if each.any()]) if probability else torch.zeros(0)
    assert len(drawn) / 300 == pytest.approx(probability, abs=0.1)
    assert not probability or drawn.std().item() == pytest.approx(1, abs=0.15)


def same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x
    )


def test_samples_have_the_promised_form(tmp_path: Path) -> None:
    batch = collect(0, split=write_data_set(tmp_path))[0]
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["image"].min() >= 0 and batch["image"].max() <= 1
    assert set(batch["mask"].unique().tolist()) <= {0.0, 1.0}
    assert batch["mask"].shape == (2, 1, 32, 32)
    assert batch["noise"].std() > 0.5


def test_workers_and_cache_change_nothing(tmp_path: Path) -> None:
    split = write_data_set(tmp_path)
    alone = collect(0, split=split)
    assert same(alone, collect(2, split=split))
    assert same(alone, collect(0, cache=0, split=split))
    three = 3 * 4 * 32 * 32
    assert same(alone, collect(0, cache=three, split=split))
    dataset = SegmentationDataset(open_data_set(split).train, 32, cache_bytes=three + 100)
    assert dataset.cached_bytes == three, "as many as fit"


class CountsThreads(SegmentationDataset):
    """In place of a case's index, the threads that OpenCV and torch use where it is loaded."""

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        sample = super().__getitem__(key)
        sample["index"] = cv2.getNumThreads() + torch.get_num_threads()
        return sample


def test_a_spawned_worker_loads_the_same_with_one_thread(tmp_path: Path) -> None:
    split = write_data_set(tmp_path, train=2)
    dataset = CountsThreads(
        open_data_set(split).train, 32, augmentation=published_augmentation(), cache_bytes=1 << 20
    )
    loader = make_loader(dataset, 2, num_workers=1)
    loader.multiprocessing_context = "spawn"  # the only way on macOS and Windows
    (spawned,), (here,) = loader, make_loader(dataset, 2)
    assert spawned["index"].tolist() == [2, 2]
    assert torch.equal(spawned["image"], here["image"])
    assert torch.equal(spawned["mask"], here["mask"])


def test_epochs_differ(tmp_path: Path) -> None:
    batches = collect(0, split=write_data_set(tmp_path))
    first, second = batches[:5], batches[5:]
    assert [b["index"].tolist() for b in first] != [b["index"].tolist() for b in second]
    assert not same(first, second)


def test_each_seed_epoch_and_case_has_its_own_random_numbers(tmp_path: Path) -> None:
    cases = open_data_set(write_data_set(tmp_path)).train[:2]

    def noise(seed: int, epoch: int, case: int) -> torch.Tensor:
        dataset = SegmentationDataset(
            cases,
            32,
            augmentation=published_augmentation(),
            seed=seed,
            noise_shape=(4, 4, 4),
            noise_probability=1.0,
        )
        return dataset[(epoch, case)]["noise"]

    keys = list(itertools.product((1, 2), (0, 1), (0, 1)))
    for a, b in itertools.combinations(keys, 2):
        assert not torch.equal(noise(*a), noise(*b)), (a, b)
    before = torch.get_rng_state()
    assert torch.equal(noise(*keys[0]), noise(*keys[0]))
    assert torch.equal(torch.get_rng_state(), before), "drawn from a state of their own"


def test_an_epoch_can_start_part_way(tmp_path: Path) -> None:
    split = write_data_set(tmp_path)
    assert same(collect(0, split=split)[2:5], collect(0, start=4, split=split)[:3])


def test_validation_is_neither_augmented_nor_noised(tmp_path: Path) -> None:
    dataset = SegmentationDataset(open_data_set(write_data_set(tmp_path)).test, 64)
    sample = dataset[1]
    image, mask = dataset.pixels(1)
    torch.testing.assert_close(sample["image"], torch.from_numpy(image).permute(2, 0, 1) / 255)
    assert torch.equal(sample["mask"][0], torch.from_numpy(mask).float())
    assert not sample["noise"].any()


def test_geometry_moves_image_and_mask_together() -> None:
    from torchvision import tv_tensors

    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[:, 10:30, 20:40] = 1
    image = (mask * 255).expand(3, -1, -1).contiguous()
    transform = published_augmentation()
    for seed in range(20):
        torch.manual_seed(seed)
        moved, label = transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        assert set(label.unique().tolist()) <= {0, 1}
        disagree = ((moved.mean(0) > 0.45) != (label[0] > 0)).float().mean()
        assert disagree < 0.02


def test_quarter_turns_take_all_three_angles() -> None:
    from torchvision import tv_tensors

    image = tv_tensors.Image(torch.arange(16).reshape(1, 4, 4))
    turn = RandomQuarterTurn(1.0)
    torch.manual_seed(0)
    seen = {tuple(turn(image).flatten().tolist()) for _ in range(40)}
    expected = {tuple(torch.rot90(image, k, (1, 2)).flatten().tolist()) for k in (1, 2, 3)}
    assert seen == expected


def test_augmentation_draws_what_was_published() -> None:
    """A mask that holds its own coordinates tells where they went; a plain image tells the colours."""
    from torchvision import tv_tensors

    count, side, centre = 300, 64, slice(24, 40)
    grid = torch.stack(torch.meshgrid(*[torch.arange(side).float()] * 2, indexing="ij"))
    plain = torch.tensor([100, 150, 50], dtype=torch.uint8)[:, None, None].expand(3, side, side)
    transform = published_augmentation()
    orientations: Counter[tuple[int, bool]] = Counter()
    hues, lights, angles, scales, shifts = [], [], [], [], []
    between = 0.0
    for seed in range(count):
        torch.manual_seed(seed)
        image, moved = transform(tv_tensors.Image(plain), tv_tensors.Mask(grid))
        colour = image[:, 32, 32]
        if not torch.allclose(colour, plain[:, 32, 32] / 255):
            hues.append(rgb_to_hsv(*colour.tolist())[0] - 1 / 4)
            lights.append(colour.max().item() / (150 / 255))
            between = max(between, (255 * colour - (255 * colour).round()).abs().max().item())
        middle = moved[:, centre, centre]
        down = (middle[:, -1] - middle[:, 0]).mean(-1) / 15
        right = (middle[:, :, -1] - middle[:, :, 0]).mean(-1) / 15
        turn = torch.stack([down, right], dim=1)  # d (place before) / d (place after)
        angle = torch.atan2(down[1], down[0]).rad2deg().item()
        quarters = round(angle / 90)
        orientations[quarters % 4, bool(turn.det() < 0)] += 1
        if not torch.equal(turn, turn.round()):
            angles.append(angle - 90 * quarters)
            scales.append(turn.det().abs().rsqrt().item())
            shift = torch.linalg.solve(turn, middle.mean((1, 2)) - (side - 1) / 2)
            shifts.append(shift.abs() / side)

    for quarters, mirrored in itertools.product(range(4), (False, True)):
        expected = count / (12 if quarters % 2 else 6)
        assert orientations[quarters, mirrored] == pytest.approx(expected, abs=3.5 * expected**0.5)
    assert len(hues) / count == pytest.approx(0.2, abs=0.08)
    assert between > 0.4, "colours are changed as numbers from 0 to 1, not as one of 256"
    assert len(angles) / count == pytest.approx(0.4, abs=0.1)
    ranges = ((hues, -0.1, 0.1), (lights, 0.9, 1.1), (angles, -20, 20), (scales, 0.9, 1.1))
    for values, low, high in ranges:
        assert min(values) == pytest.approx(low, abs=0.15 * (high - low))
        assert max(values) == pytest.approx(high, abs=0.15 * (high - low))
    assert torch.stack(shifts).amax(0).tolist() == pytest.approx([0.15, 0.15], abs=0.02)


def test_upright_images_are_mirrored_and_never_turned_over() -> None:
    from torchvision import tv_tensors

    side, centre = 64, slice(24, 40)
    grid = torch.stack(torch.meshgrid(*[torch.arange(side).float()] * 2, indexing="ij"))
    transform = published_augmentation(keep_upright=True)
    mirrored, tilted = 0, 0
    for seed in range(200):
        torch.manual_seed(seed)
        _, moved = transform(tv_tensors.Image(torch.zeros(3, side, side)), tv_tensors.Mask(grid))
        rows, columns = moved[:, centre, centre]
        assert rows[-1].mean() > rows[0].mean(), "the top stays above"
        mirrored += int(columns[:, -1].mean() < columns[:, 0].mean())
        tilted += int(not torch.equal(rows[:, 0], rows[:, -1]))
    assert mirrored == pytest.approx(100, abs=25)
    assert tilted == pytest.approx(80, abs=25), "by up to 20 degrees they are"


def test_the_strong_augmentation_changes_scale_and_light_and_adds_blur_and_noise() -> None:
    """Stripes of the width of a pixel tell blur; a mask of coordinates tells what was moved."""
    from torchvision import tv_tensors

    count, side, centre = 400, 64, slice(24, 40)
    grid = torch.stack(torch.meshgrid(*[torch.arange(side).float()] * 2, indexing="ij"))
    halves = torch.full((3, side, side), 128, dtype=torch.uint8)
    halves[:, ::2] = 64
    transform = strong_augmentation(keep_upright=True)
    scales, lights, noisy, blurred, still = [], [], 0, 0, 0
    for seed in range(count):
        torch.manual_seed(seed)
        image, moved = transform(tv_tensors.Image(halves), tv_tensors.Mask(grid))
        assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
        rows, columns = moved[:, centre, centre]
        down = torch.stack([(each[-1] - each[0]).mean() / 15 for each in (rows, columns)])
        assert down[0] > 0.5, "upright, but for 20 degrees"
        if not torch.equal(rows, grid[0, centre, centre]):
            scales.append(1 / down.norm().item())
            continue
        still += 1
        dark, light = image[0, 24:40:2], image[0, 25:40:2]
        noise = light.std().item() > 0.01
        noisy += noise
        blurred += bool((light.mean() - dark.mean()) < 0.12)  # contrast leaves 0.75 of 0.25
        if not noise:
            lights.append(light.mean().item() / (128 / 255))
    assert still / count == pytest.approx(0.4, abs=0.08)
    assert min(scales) == pytest.approx(0.7, abs=0.06) and max(scales) == pytest.approx(
        1.4, abs=0.1
    )
    assert noisy / still == pytest.approx(0.2, abs=0.1)
    assert blurred / still == pytest.approx(0.2, abs=0.1)
    assert min(lights) < 0.75 and max(lights) > 1.2, "gamma and brightness"


def test_the_strong_augmentation_bends_intensities_by_gamma() -> None:
    """Brightness and contrast keep the middle of three greys in the middle; gamma does not."""
    from torchvision import tv_tensors

    greys = torch.tensor([30, 80, 130], dtype=torch.uint8).repeat_interleave(16)
    bands = greys[:, None].expand(3, 48, 48)
    columns = torch.arange(48.0).expand(1, 48, 48)
    transform = strong_augmentation(keep_upright=True)
    middles, count = [], 0
    for seed in range(300):
        torch.manual_seed(seed)
        image, moved = transform(tv_tensors.Image(bands), tv_tensors.Mask(columns))
        if not torch.equal(moved.sort(-1)[0], columns) or image[0, 4:12].std() > 0.01:
            continue  # moved, or noisy
        low, middle, high = (image[0, start : start + 8].mean().item() for start in (4, 20, 36))
        middles.append((middle - low) / (high - low))
        count += abs(middles[-1] - 0.5) > 0.01
    assert count / len(middles) == pytest.approx(0.3, abs=0.1)
    assert min(middles) == pytest.approx(0.43, abs=0.03), "a power of 1.5"
    assert max(middles) == pytest.approx(0.55, abs=0.02), "a power of 0.7"


def test_gamma_leaves_black_white_and_masks_alone() -> None:
    from torchvision import tv_tensors

    image = torch.tensor([0.0, 0.25, 0.5, 1.0]).expand(3, 1, 4)
    mask = torch.tensor([[[0, 1, 1, 0]]], dtype=torch.uint8)
    powers = []
    for seed in range(50):
        torch.manual_seed(seed)
        changed, kept = RandomGamma((0.7, 1.5))(tv_tensors.Image(image), tv_tensors.Mask(mask))
        assert torch.equal(kept, mask) and changed[0, 0].tolist()[::3] == [0.0, 1.0]
        power = changed[0, 0, 2].log2().neg().item()
        assert changed[0, 0, 1].item() == pytest.approx(0.25**power, rel=1e-4)
        powers.append(power)
    assert min(powers) == pytest.approx(0.7, abs=0.1) and max(powers) == pytest.approx(1.5, abs=0.1)


def test_images_are_interpolated_when_they_are_turned() -> None:
    from torchvision import tv_tensors

    stripes = (torch.arange(32) % 4 < 2).to(torch.uint8).mul(255).expand(3, 32, 32)
    transform = published_augmentation()
    greys = []
    for seed in range(20):
        torch.manual_seed(seed)
        moved, _ = transform(tv_tensors.Image(stripes), tv_tensors.Mask(stripes[:1]))
        greys.append(len(moved[0].unique()))  # jitter of the colours keeps two
    assert min(greys) == 2 and max(greys) > 100


def test_images_shrink_by_area_and_masks_by_their_middles() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::4] = 255
    assert (resize_image(stripes, 16, 16) == 64).all(), "the mean of each 4 x 4"
    mask = np.zeros((60, 60), np.uint8)
    mask[20:40, 20:40] = 1
    small = resize_mask(mask, 20, 20)
    assert small.sum() == 36 and (small == small[::-1, ::-1]).all()


@pytest.mark.parametrize(("row", "column"), [(0, 0), (41, 300), (299, 399)])
def test_a_lesion_between_the_samples_of_a_smaller_mask_keeps_a_pixel(
    row: int, column: int
) -> None:
    mask = np.zeros((300, 400), np.uint8)
    mask[row, column] = 1
    small = resize_mask(mask, 32, 32)
    assert np.argwhere(small).tolist() == [[row * 32 // 300, column * 32 // 400]]
    assert not resize_mask(np.zeros_like(mask), 32, 32).any()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("phase", range(4))
def test_a_side_that_shrinks_is_averaged_though_the_other_grows(turned: bool, phase: int) -> None:
    """Each pixel is the mean of the four that it covers, so that the image keeps its place."""
    columns = np.arange(512)
    lines = (columns % 4 == phase) * 255, (columns >= 256 + phase) * 255
    for line in lines:
        image = np.broadcast_to(line[None, :, None], (64, 512, 3)).astype(np.uint8)
        if turned:
            image = np.ascontiguousarray(image.transpose(1, 0, 2))
        resized = resize_image(image, 128, 128)[..., 0]
        expected = line.reshape(128, 4).mean(1)
        assert np.abs((resized.T if turned else resized) - expected).max() <= 0.5


@pytest.mark.parametrize(
    ("shape", "how"),
    [
        ((60, 90), cv2.INTER_AREA), ((32, 90), cv2.INTER_AREA), ((33, 33), cv2.INTER_AREA),
        ((20, 30), cv2.INTER_LINEAR), ((32, 7), cv2.INTER_LINEAR),
    ],
)  # fmt: skip
def test_other_images_are_resized_in_one_step(shape: tuple[int, int], how: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    expected = cv2.resize(image, (32, 32), interpolation=how)
    assert np.array_equal(resize_image(image, 32, 32), expected)


def test_folds_are_disjoint_and_cover_train(tmp_path: Path) -> None:
    data_set = open_data_set(write_data_set(tmp_path, train=11, test=3))
    names = {case.name for case in data_set.train}
    values = {"pickle_file_path": data_set.split_file, "folds": 4, "seed": 3}
    held_parts = []
    for fold in range(4):
        train, held = training_cases_from(make_config(values | {"fold": fold}), data_set)
        held_parts.append([case.name for case in held])
        assert {case.name for case in train} == names - set(held_parts[-1])
    assert sorted(name for part in held_parts for name in part) == sorted(names)
    assert sorted(map(len, held_parts)) == [2, 3, 3, 3]


def test_held_out_cases_depend_on_the_seed(tmp_path: Path) -> None:
    data_set = open_data_set(write_data_set(tmp_path, train=20, test=1, size=32))
    values = {"pickle_file_path": data_set.split_file, "val_fraction": 0.5}
    one, other = (
        training_cases_from(make_config(values | {"seed": s}), data_set)[1] for s in (3, 4)
    )
    assert len(one) == len(other) == 10 and one != other


def test_training_cases_follow_the_config(tmp_path: Path) -> None:
    data_set = open_data_set(write_data_set(tmp_path, train=9, test=1, size=32))
    system: Any = SimpleNamespace(latent_shape=lambda size: (4, 4, 4), noise_probability=1.0)

    def first(**changes: object) -> Sample:
        values = {"pickle_file_path": data_set.split_file, "image_size": 32, "folds": 3}
        config = make_config(values | changes)
        cases = training_cases_from(config, data_set)
        return training_sets(config, cases, system, progress=False)[0][0, 0]

    plain, other = first(augment=False), first(augment=False, seed=6)
    assert not torch.equal(first()["image"], plain["image"])
    assert plain["noise"].any() and not torch.equal(plain["noise"], other["noise"])


def test_a_split_may_name_the_cases_that_choose_the_checkpoint(tmp_path: Path) -> None:
    split_file = write_data_set(tmp_path, train=6, test=2)
    split = json.loads(split_file.read_text())
    held = [split["train"]["name_list"].pop(0), split["train"]["name_list"].pop(2)]
    split_file.write_text(json.dumps(split | {"val": {"name_list": held}}))
    data_set = open_data_set(split_file)
    assert len(data_set.train) == 6, "cases that were seen in training, as the held-out ones are"
    values = {"pickle_file_path": split_file, "val_fraction": 0.5}
    train, val = training_cases_from(make_config(values), data_set)
    assert [case.name for case in val] == held
    assert [case.name for case in train] == split["train"]["name_list"]
    on_test = training_cases_from(make_config(values | {"select_on": "test"}), data_set)
    assert [len(cases) for cases in on_test] == [6, 2]
    with pytest.raises(UserError, match=r"names 2 cases to choose the checkpoint by .*folds=0"):
        training_cases_from(make_config(values | {"folds": 2}), data_set)


@pytest.mark.parametrize("how", ["val_fraction=0.1", "folds=2", "select_on=test"])
def test_a_cohort_for_testing_only_is_not_trained_on(tmp_path: Path, how: str) -> None:
    data_set = open_data_set(write_data_set(tmp_path, train=0, test=2, size=32))
    key, value = how.split("=")
    config = make_config({"pickle_file_path": data_set.split_file, "fold": 0, key: value})
    with pytest.raises(UserError, match="blobs has no training cases, only 2 to test on"):
        training_cases_from(config, data_set)


def test_one_patient_cannot_be_held_out_and_trained_on(tmp_path: Path) -> None:
    data_set = open_data_set(write_data_set(tmp_path, train=3, test=2, size=32))
    groups = {case.name: "A" for case in data_set.train}
    (data_set.folder / "groups.json").write_text(json.dumps(groups))
    with pytest.raises(UserError, match=r"all 3 training cases .* \(val_fraction 0.1, 1 group"):
        training_cases_from(make_config({"pickle_file_path": data_set.split_file}), data_set)


def test_published_path_finds_the_prepared_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = write_data_set(tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    found = find_split_file(Path("./Dataset/blobs/blobs_train_test_names.pkl"))
    assert found.resolve() == split
    with pytest.raises(UserError, match=r"(?s)nothing.*Looked for.*datasets\.prepare nothing"):
        find_split_file(Path("nothing_train_test_names.pkl"))
    with pytest.raises(UserError, match=r"--root elsewhere puts it where it was looked for"):
        find_split_file(Path("elsewhere/nothing/nothing_train_test_names.json"))


def test_the_split_that_was_prepared_comes_before_a_pickle_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = write_data_set(tmp_path / "datasets")
    split.with_suffix(".pkl").touch()
    monkeypatch.chdir(tmp_path)
    found = find_split_file(Path("./Dataset/blobs/blobs_train_test_names.pkl"))
    assert found.resolve() == split


def test_a_set_further_down_in_datasets_is_not_taken_for_the_one_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data_set(tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.cases.REPOSITORY", tmp_path)
    asked = Path("datasets/pretraining/blobs/blobs_train_test_names.json")
    for path in (asked, tmp_path / asked):
        with pytest.raises(
            UserError, match=r"datasets\.prepare blobs .*--root \S*datasets/pretraining "
        ):
            open_data_set(path)
    split = write_data_set(tmp_path / "datasets" / "pretraining")
    (tmp_path / "another").mkdir()
    monkeypatch.chdir(tmp_path / "another")
    assert find_split_file(asked) == split


def test_another_split_file_than_the_named_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write_data_set(tmp_path / "datasets", train=2, test=1)
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "datasets" / "blobs" / "blobs_train_test_names.json"
    assert open_data_set(own).split_file == own and not caplog.records
    elsewhere = tmp_path / "hospital_b" / "blobs" / "blobs_train_test_names.json"
    found = open_data_set(elsewhere).split_file
    assert f"{elsewhere} is not there; taking {found}" in caplog.text


@pytest.mark.parametrize("prepared", ["kvasir", "kvasir-instrument"])
@pytest.mark.parametrize("asked", ["kvasir", "kvasir-instrument"])
@pytest.mark.parametrize("place", ["datasets", "Dataset"])
def test_both_names_of_kvasir_instrument_open_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: str, asked: str, place: str
) -> None:
    split = write_data_set(tmp_path / place, name=prepared)
    split.parent.rename(tmp_path / place / "kvasir-instrument")
    monkeypatch.chdir(tmp_path)
    path = Path(f"./Dataset/kvasir-instrument/{asked}_train_test_names.pkl")
    assert open_data_set(path).name == "kvasir-instrument"
    assert make_config({"pickle_file_path": path}).dataset == "kvasir-instrument"
    grouped = make_config({"pickle_file_path": f"{asked}_grouped_train_test_names.json"})
    assert grouped.dataset == "kvasir-instrument_grouped"


def test_ham10000_masks_may_be_named_as_the_images(tmp_path: Path) -> None:
    split = write_data_set(tmp_path, name="ham10000")
    masks = split.parent / "masks"
    (masks / "case_0.png").rename(masks / "case_0_segmentation.png")
    opened = open_data_set(split)
    assert [case.mask.name for case in opened.train[:2]] == [
        "case_0_segmentation.png",
        "case_1.png",
    ]


def test_another_split_of_a_published_set_finds_its_masks(tmp_path: Path) -> None:
    split = write_data_set(tmp_path, name="ham10000")
    for mask in (split.parent / "masks").iterdir():
        mask.rename(mask.with_stem(f"{mask.stem}_segmentation"))
    other = split.rename(split.with_name("fold1_train_test_names.json"))
    with pytest.raises(UserError, match="case_0: no mask"):
        open_data_set(other)
    manifest = {"name": "ham10000", "train": 1, "test": 1}
    (split.parent / "dataset.json").write_text(json.dumps(manifest))
    opened = open_data_set(other)
    assert opened.name == "fold1" and opened.train[0].mask.stem == "case_0_segmentation"


def test_missing_files_come_together(tmp_path: Path) -> None:
    split = write_data_set(tmp_path)
    (split.parent / "images" / "case_1.png").unlink()
    (split.parent / "masks" / "case_11.png").unlink()
    with pytest.raises(UserError) as caught:
        open_data_set(split)
    assert "case_1: no image" in str(caught.value) and "case_11: no mask" in str(caught.value)


def test_unusable_cases_come_together(tmp_path: Path) -> None:
    split = write_data_set(tmp_path)
    (split.parent / "images" / "case_0.png").write_bytes(b"not an image")
    whole = (split.parent / "images" / "case_4.png").read_bytes()
    (split.parent / "images" / "case_4.png").write_bytes(whole[: len(whole) // 3])
    (split.parent / "images" / "case_5.png").write_bytes(b"")
    cv2.imwrite(str(split.parent / "masks" / "case_2.png"), np.zeros((64, 60), np.uint8))
    with pytest.raises(UserError) as caught:
        SegmentationDataset(open_data_set(split).train, 32)
    text = str(caught.value)
    assert "4 problem" in text
    assert all(f"case_{i}.png" in text for i in (0, 2, 4, 5))
    assert "60x64" in text and "64x64" in text


def test_a_jpeg_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    split = write_data_set(tmp_path)
    image = split.parent / "images" / "case_0.png"
    whole = cv2.imencode(".jpg", read_image(image))[1].tobytes()
    image.write_bytes(whole[: len(whole) * 9 // 10])
    with pytest.raises(UserError, match=r"case_0\.png: the JPEG is cut short"):
        SegmentationDataset(open_data_set(split).train, 32)


@pytest.mark.parametrize("progressive", [0, 1])
def test_what_lies_before_and_behind_the_pixels_of_a_jpeg(progressive: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    whole = cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])[1].tobytes()
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(whole) + 2) + whole
    with_thumbnail = whole[:2] + thumbnail + whole[2:]
    for content in (whole, with_thumbnail, whole + b"a film \xff\xda and no more"):
        assert (decode(content, cv2.IMREAD_COLOR) == decode(whole, cv2.IMREAD_COLOR)).all()
    for content in (whole, with_thumbnail):
        for end in range(2, len(content) - 2, 7):
            with pytest.raises(ImageError):
                decode(content[:end], cv2.IMREAD_COLOR)


def test_a_damaged_tiff_is_refused(tmp_path: Path) -> None:
    split = write_data_set(tmp_path)
    path = split.parent / "images" / "case_0.tif"
    path.with_suffix(".png").unlink()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, compression="tiff_lzw")
    assert len(SegmentationDataset(open_data_set(split).train, 32)) == 10
    content = bytearray(path.read_bytes())
    content[4000:8000] = bytes(4000)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"case_0\.tif: the TIFF is damaged"):
        SegmentationDataset(open_data_set(split).train, 32)


def test_a_tiff_in_luma_and_chroma_is_read() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (9, 11, 3), np.uint8)
    for compression in (None, "tiff_lzw"):
        file = io.BytesIO()
        Image.fromarray(noise).convert("YCbCr").save(file, "TIFF", compression=compression)
        difference = decode(file.getvalue(), cv2.IMREAD_COLOR)[..., ::-1] - noise.astype(int)
        assert np.abs(difference).max() <= 3


@pytest.mark.parametrize("flags", [cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE, AS_STORED])
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_transparency_does_not_darken_an_image(tmp_path: Path, suffix: str, flags: int) -> None:
    """OpenCV multiplies the colours of a TIFF by its alpha channel."""
    path = tmp_path / f"image{suffix}"
    pixels = np.full((8, 8, 4), 128, np.uint8)
    pixels[4:] = 0  # black, whatever its alpha
    for alpha in (0, 254, 255):
        pixels[0, 0, 3], pixels[0, 1:, 3], pixels[1:4, :, 3] = alpha, 255, 255
        Image.fromarray(pixels).save(path)
        if suffix == ".tif" and alpha < 255:
            with pytest.raises(ImageError, match="would darken its colours; save it without"):
                read_pixels(path, flags)
        else:
            image = read_pixels(path, flags)
            assert (image[:4] == 128).all() and not image[4:].any()


def test_a_tiff_mask_that_is_transparent_throughout_is_not_taken_for_empty() -> None:
    def tiff(colours: np.ndarray, alpha: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.dstack([colours, colours, colours, alpha])).save(file, "TIFF")
        return file.getvalue()

    with pytest.raises(ImageError, match="would darken its colours; save it without"):
        decode_mask(tiff(SHAPE, NONE), 1)
    assert np.array_equal(decode_mask(tiff(SHAPE, SHAPE), 1)[0], SHAPE > 0)
    assert not decode_mask(tiff(NONE, NONE), 1)[0].any()


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_tiffs_of_every_kind_are_read(kind: str, channels: int) -> None:
    pixels = np.arange(300).astype(kind).reshape(10, -1, channels)
    content = cv2.imencode(".tiff", pixels)[1].tobytes()
    assert (decode(content, cv2.IMREAD_UNCHANGED).ravel() == pixels.ravel()).all()


@pytest.mark.parametrize("kind", ["int8", "int16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_a_sign_are_refused(kind: str, channels: int) -> None:
    pixels = np.arange(-100, 110).astype(kind).reshape(10, -1, channels)
    content = cv2.imencode(".tiff", pixels)[1].tobytes()
    with pytest.raises(ImageError, match=f"holds {kind} pixels; .* without a sign"):
        decode(content, cv2.IMREAD_COLOR)


def test_floating_point_files_are_refused_by_kind(tmp_path: Path) -> None:
    split = write_data_set(tmp_path)
    _, content = cv2.imencode(".tiff", np.zeros((64, 64), np.float32))
    for part in ("images", "masks"):
        path = split.parent / part / f"case_{len(part) - 5}.png"
        path.with_suffix(".tif").write_bytes(content.tobytes())
        path.unlink()
    with pytest.raises(UserError) as caught:
        SegmentationDataset(open_data_set(split).train, 32)
    text = str(caught.value)
    assert "case_1.tif: holds float32 pixels; save it with whole numbers of 8 or 16 bits" in text
    assert "case_0.tif: the mask holds float32 values" in text


def test_sizes_of_one_aspect_ratio_are_accepted(tmp_path: Path) -> None:
    split = write_data_set(tmp_path)
    mask = cv2.imread(str(split.parent / "masks" / "case_0.png"), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    cv2.imwrite(str(split.parent / "masks" / "case_0.png"), cv2.resize(mask, (128, 128)))
    assert len(SegmentationDataset(open_data_set(split).train, 32)) == 10


@pytest.mark.parametrize("mask", [(50, 51), (51, 50), (98, 100), (100, 98)])
def test_ratios_that_differ_by_two_hundredths_are_told(mask: tuple[int, int]) -> None:
    assert aspect_ratio_differs((100, 100), mask)
    assert not aspect_ratio_differs((2 * mask[0], 2 * mask[1]), mask)
    assert not aspect_ratio_differs((400, 400), (400, 403))


def test_mask_values_are_understood(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = np.array([[0, 1], [1, 0]], np.uint8)
    for high in (1, 255):
        cv2.imwrite(str(tmp_path / "mask.png"), expected * high)
        assert np.array_equal(read_mask(tmp_path / "mask.png"), expected)
    assert not caplog.records
    cv2.imwrite(str(tmp_path / "odd.png"), np.array([[0, 90], [200, 99]], np.uint8))
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(read_mask(tmp_path / "odd.png"), [[0, 0], [1, 0]])
        read_mask(tmp_path / "odd.png")
    assert caplog.text.count("odd.png") == 1


SHAPE = np.zeros((8, 8), np.uint8)
SHAPE[2:6, 3:7] = 255
FULL, NONE = np.full_like(SHAPE, 255), np.zeros_like(SHAPE)


@pytest.mark.parametrize(
    ("red", "green_and_blue", "alpha"),
    [
        (FULL, FULL, SHAPE),
        (NONE, NONE, SHAPE),
        (FULL, 255 - SHAPE, SHAPE),
        (FULL, FULL, SHAPE // 255 * 100),
        (NONE, NONE, SHAPE // 255 * 100),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_a_mask_drawn_by_its_transparency_is_refused(
    tmp_path: Path, red: np.ndarray, green_and_blue: np.ndarray, alpha: np.ndarray, suffix: str
) -> None:
    path = tmp_path / f"mask{suffix}"
    cv2.imwrite(str(path), np.dstack([green_and_blue, green_and_blue, red, alpha]))
    with pytest.raises(UserError, match=r"mask\....: the mask's transparency.* flatten it to grey"):
        read_mask(path)


@pytest.mark.parametrize("alpha", [FULL, NONE, SHAPE])
def test_transparency_that_changes_nothing_is_ignored(tmp_path: Path, alpha: np.ndarray) -> None:
    cv2.imwrite(str(tmp_path / "mask.png"), np.dstack([SHAPE, SHAPE, SHAPE, alpha]))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), SHAPE // 255)


NEARLY_FULL, LARGER = FULL.copy(), SHAPE.copy()
NEARLY_FULL[0], LARGER[1] = 254, 255


@pytest.mark.parametrize("alpha", [NEARLY_FULL, LARGER])
@pytest.mark.parametrize("colours", [SHAPE, SHAPE // 255])
def test_transparency_around_a_shape_is_ignored(
    tmp_path: Path, alpha: np.ndarray, colours: np.ndarray
) -> None:
    cv2.imwrite(str(tmp_path / "mask.png"), np.dstack([colours, colours, colours, alpha]))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), SHAPE // 255)


def test_a_shape_that_is_more_than_half_transparent_is_not_drawn(tmp_path: Path) -> None:
    for faint, opacity in (("more", 126), ("less", 128)):
        alpha = FULL.copy()
        alpha[SHAPE > 0] = opacity
        cv2.imwrite(str(tmp_path / f"{faint}.png"), np.dstack([SHAPE, SHAPE, SHAPE, alpha]))
    assert np.array_equal(read_mask(tmp_path / "less.png"), SHAPE // 255)
    with pytest.raises(UserError, match="flatten it to grey"):
        read_mask(tmp_path / "more.png")


@pytest.mark.parametrize("tag", [3, 6, 8])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_transparency_of_a_mask_with_an_orientation_tag(
    tmp_path: Path, tag: int, suffix: str
) -> None:
    path, shape = tmp_path / f"mask{suffix}", SHAPE[:7]
    path.write_bytes(turned(np.dstack([shape, shape, shape, shape]), tag, suffix))
    quarters = {3: 2, 6: 3, 8: 1}[tag]
    assert np.array_equal(read_mask(path), np.rot90(shape, quarters) // 255)
    if suffix == ".png":  # of a TIFF, OpenCV multiplies the colours by alpha
        path.write_bytes(turned(np.dstack([FULL[:7], FULL[:7], FULL[:7], shape]), tag, suffix))
        with pytest.raises(UserError, match="flatten it to grey"):
            read_mask(path)


@pytest.mark.parametrize("any_label", [False, True])
def test_labels_and_their_transparency(any_label: bool) -> None:
    labels, alpha = SHAPE // 255 * 200, SHAPE.copy()
    labels[2, 3], alpha[2, 3] = 1, 1  # faint: background at half, a label otherwise
    content = cv2.imencode(".png", np.dstack([labels, labels, labels, alpha]))[1].tobytes()
    mask, _ = decode_mask(content, 1, any_label)
    assert mask[2, 3] == any_label and mask.sum() == 15 + any_label
    mask, _ = decode_mask(content, 1, labels=(1, 200))
    assert mask[2, 3] and mask.sum() == 16
    content = cv2.imencode(".png", np.dstack([FULL, FULL, FULL, alpha]))[1].tobytes()
    with pytest.raises(ImageError, match="flatten it to grey"):
        decode_mask(content, 1, any_label)


@pytest.mark.parametrize("any_label", [False, True])
@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("label", [1, 2])
def test_labels_in_one_colour_channel_are_read(label: int, channel: int, any_label: bool) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., channel] = SHAPE // 255 * label
    mask, _ = decode_mask(cv2.imencode(".png", pixels)[1].tobytes(), 1, any_label)
    assert np.array_equal(mask, SHAPE > 0)


@pytest.mark.parametrize("any_label", [False, True])
def test_a_palette_mask_without_colours_is_refused(any_label: bool) -> None:
    def png(labels: np.ndarray) -> bytes:
        file = io.BytesIO()
        palette = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
        palette.putpalette([0, 0, 0])
        palette.save(file, "PNG")
        return file.getvalue()

    with pytest.raises(ImageError, match="palette gives all of its labels one colour"):
        decode_mask(png(SHAPE // 255), 1, any_label)
    empty, _ = decode_mask(png(NONE), 1, any_label)
    assert not empty.any()


def test_an_empty_palette_mask_may_be_as_large_as_the_limit_on_megapixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = io.BytesIO()
    Image.fromarray(NONE).convert("P").save(file, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", NONE.size // 3)  # Pillow refuses twice as many
    mask, _ = decode_mask(file.getvalue(), 1)
    assert not mask.any()


def test_grey_and_palette_masks_with_transparency(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    grey = Image.merge("LA", (Image.fromarray(FULL), Image.fromarray(SHAPE)))
    palette = Image.fromarray(SHAPE // 255).convert("P")
    palette.putpalette([255, 255, 255, 255, 255, 255])
    for picture, transparent in ((grey, None), (palette, 0)):
        picture.save(path, transparency=transparent)
        with pytest.raises(UserError, match="flatten it to grey"):
            read_mask(path)


def test_odd_masks_are_told_once_whatever_the_loader(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    split = write_data_set(tmp_path)
    odd = np.full((64, 64), 90, np.uint8)
    odd[:32] = 60
    cv2.imwrite(str(split.parent / "masks" / "case_0.png"), odd)
    dataset = SegmentationDataset(open_data_set(split).train, 32)
    loader = make_loader(dataset, 2, num_workers=1)
    loader.multiprocessing_context = "spawn"  # nothing is known there from the main process
    for _ in range(2):
        list(loader)
    assert capfd.readouterr().err.count("case_0.png") == 0


def test_overlapping_split_is_refused(tmp_path: Path) -> None:
    split = write_data_set(tmp_path)
    names = json.loads(split.read_text())
    names["test"]["name_list"].append("case_0")
    split.write_text(json.dumps(names))
    with pytest.raises(UserError, match="case_0"):
        open_data_set(split)


def test_other_extensions_are_found(tmp_path: Path) -> None:
    split = write_data_set(tmp_path)
    image = split.parent / "images" / "case_0.png"
    pixels = cv2.imread(str(image))
    assert pixels is not None
    cv2.imwrite(str(image.with_suffix(".BMP")), pixels)
    image.unlink()
    shutil.move(split.parent / "masks" / "case_1.png", split.parent / "masks" / "case_1.PNG")
    assert len(open_data_set(split).train) == 10


def test_held_out_cases_of_a_group_are_those_of_the_data_set(tmp_path: Path) -> None:
    write_data_set(tmp_path, train=9, test=2, size=32)
    config = make_config(
        {
            "pickle_file_path": tmp_path / "blobs" / "blobs_train_test_names.json",
            "val_fraction": 0.34,
        }
    )
    data_set = open_data_set(config.pickle_file_path)
    groups = tmp_path / "blobs" / "groups.json"
    groups.write_text(json.dumps({case.name: str(i // 3) for i, case in enumerate(data_set.train)}))
    train, held = training_cases_from(config, data_set)
    assert (
        len(held) == 3
        and len({read_metadata_groups(data_set.folder)[case.name] for case in held}) == 1
    )
    assert len(train) == 6
    groups.write_text("[]")
    with pytest.raises(UserError, match=r"groups\.json: expected case names.*prepare"):
        training_cases_from(config, data_set)


def test_cases_of_one_group_are_held_out_in_one_fold(tmp_path: Path) -> None:
    split = write_data_set(tmp_path, train=9, test=2, size=32)
    data_set = open_data_set(split)
    group_of = {case.name: str(i % 3) for i, case in enumerate(data_set.train)}
    (data_set.folder / "groups.json").write_text(json.dumps(group_of))
    for fold in range(3):
        config = make_config({"pickle_file_path": split, "folds": 3, "fold": fold})
        train, held = training_cases_from(config, data_set)
        trained_on, held_out = ({group_of[case.name] for case in part} for part in (train, held))
        assert len(held) == 3 and len(held_out) == 1 and not trained_on & held_out


def test_colours_are_jittered_by_a_tenth() -> None:
    (jitter,) = (
        step
        for each in published_augmentation().transforms
        for step in getattr(each, "transforms", ())
        if isinstance(step, v2.ColorJitter)
    )
    assert {jitter.brightness, jitter.contrast, jitter.saturation} == {(0.9, 1.1)}
    assert jitter.hue == (-0.1, 0.1)


def test_the_strong_augmentation_is_that_of_the_documentation() -> None:
    """How often, and the ranges that are too narrow or too rare to be told from pictures."""
    steps = {
        type(each.transforms[0]): (each.p, each.transforms[0])
        for each in strong_augmentation().transforms
        if isinstance(each, v2.RandomApply)
    }
    often = {v2.RandomAffine: 0.6, v2.ColorJitter: 0.3, RandomGamma: 0.3}
    assert {kind: p for kind, (p, _) in steps.items()} == often | {
        v2.GaussianBlur: 0.2,
        v2.GaussianNoise: 0.2,
    }
    jitter, blur = steps[v2.ColorJitter][1], steps[v2.GaussianBlur][1]
    assert jitter.brightness == jitter.contrast == (0.75, 1.25)
    assert (jitter.saturation, jitter.hue) == ((0.9, 1.1), (-0.1, 0.1))
    assert (blur.kernel_size, blur.sigma) == ((5, 5), [0.5, 1.0])
    assert steps[v2.GaussianNoise][1].sigma == 0.05


def test_cases_that_choose_the_checkpoint_are_not_augmented(tmp_path: Path) -> None:
    data_set = open_data_set(write_data_set(tmp_path, train=9, test=1, size=32))
    system: Any = SimpleNamespace(latent_shape=lambda size: (4, 4, 4), noise_probability=1.0)
    config = make_config({"pickle_file_path": data_set.split_file, "image_size": 32, "folds": 3})
    _, val = training_sets(config, training_cases_from(config, data_set), system, progress=False)
    plain = torch.from_numpy(val.pixels(0)[0]).permute(2, 0, 1) / 255
    for epoch in range(8):
        torch.testing.assert_close(val[epoch, 0]["image"], plain)


def test_the_config_names_the_augmentation(tmp_path: Path) -> None:
    data_set = open_data_set(write_data_set(tmp_path, train=9, test=1, size=32))
    system: Any = SimpleNamespace(latent_shape=lambda size: (4, 4, 4), noise_probability=0.0)

    def darkest(augment: object) -> float:
        settings = {"pickle_file_path": data_set.split_file, "image_size": 32, "folds": 3}
        config = make_config(settings | {"augment": augment})
        cases = training_cases_from(config, data_set)
        train, _ = training_sets(config, cases, system, progress=False)
        plain = (
            torch.from_numpy(train.pixels(index)[0]).max() / 255 for index in range(len(train))
        )
        return min(
            (train[epoch, index]["image"].max() / highest).item()
            for index, highest in enumerate(plain)
            for epoch in range(12)
        )

    assert darkest(False) == 1
    assert 0.85 < darkest(True) < 1, "a jitter of a tenth"
    assert darkest("strong") < 0.8


@pytest.mark.parametrize("augment", [True, "strong"])
def test_the_config_says_whether_training_images_stay_upright(
    tmp_path: Path, augment: bool | str
) -> None:
    data_set = open_data_set(write_data_set(tmp_path, train=9, test=1, size=32))
    system: Any = SimpleNamespace(latent_shape=lambda size: (4, 4, 4), noise_probability=0.0)
    for case in data_set.train:
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[:16] = 255  # bright above
        cv2.imwrite(str(case.image), picture)

    def stay_upright(keep_upright: bool) -> bool:
        settings = {"pickle_file_path": data_set.split_file, "image_size": 32, "folds": 3}
        config = make_config(settings | {"keep_upright": keep_upright, "augment": augment})
        cases = training_cases_from(config, data_set)
        train, _ = training_sets(config, cases, system, progress=False)
        images = (train[epoch, index]["image"] for epoch in range(8) for index in range(len(train)))
        return all(image[:, :16].mean() > image[:, 16:].mean() + 0.2 for image in images)

    assert stay_upright(True)
    assert not stay_upright(False)


def test_the_middle_of_the_range_is_foreground() -> None:
    grey = np.array([[0, 99, 100, 200]], np.uint8)
    assert binary_mask(grey)[0].tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("value", [2, 90, 254])
def test_a_mask_of_one_odd_value_is_refused_unless_its_meaning_is_said(value: int) -> None:
    """It may be all foreground, in red on black for instance, or all background."""
    grey = np.full((4, 4), value, np.uint8)
    with pytest.raises(ImageError, match=f"the value {value} everywhere, expected 0/1 or 0/255"):
        binary_mask(grey)
    assert binary_mask(grey, any_label=True)[0].all()
    assert binary_mask(grey, labels=[value])[0].all()
    assert not binary_mask(grey, labels=[1])[0].any()


@pytest.mark.parametrize("value", [0, 255])
def test_an_empty_or_full_mask_may_be_a_jpeg_of_low_quality(value: int) -> None:
    for quality in (16, 20, 45, 90):
        content = cv2.imencode(".jpg", np.full((32, 32), value, np.uint8), [1, quality])[1]
        mask, note = decode_mask(content.tobytes(), 1)
        assert (mask == (value > 0)).all() and note is None
    red = np.full((32, 32, 3), (0, 0, 255), np.uint8)
    with pytest.raises(ImageError, match="the value 76 everywhere"):
        decode_mask(cv2.imencode(".jpg", red)[1].tobytes(), 1)
