from __future__ import annotations

import functools
import itertools
import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.checks import near_duplicates
from datasets.checks.integrity import check_data_set
from datasets.checks.leaks import leaked_test_cases, write_group_split
from datasets.checks.near_duplicates import (
    CROWD,
    MIN_THUMBNAIL_CORRELATION,
    PARTNERS,
    ImageFeatures,
    NearDuplicate,
    aligned_correlation,
    candidates,
    find_near_duplicates,
    image_features,
    working_size,
)
from datasets.checks.report import format_report
from datasets.phantom import phantom_case
from datasets.splits import Split, read_split, write_split
from scoring.groups import connected
from tests.dataset_archives import picture, png, prepare, square, write_folder
from utils.errors import UserError


@functools.cache
def scan(index: int) -> np.ndarray:
    """(256, 256) uint8, ultrasound-like; do not write into it."""
    return phantom_case(index).image


def duplicates_of(images: dict[str, np.ndarray]) -> list[NearDuplicate]:
    working = [working_size(image) for image in images.values()]
    features = [image_features(image) for image in working]
    return find_near_duplicates(list(images), features, working.__getitem__)


def pairs(duplicates: list[NearDuplicate]) -> set[tuple[str, str]]:
    return {(duplicate.first, duplicate.second) for duplicate in duplicates}


def annotated(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    cv2.line(image, (60, 80), (150, 120), 255, 1)
    cv2.putText(image, "LEFT BREAST", (20, 220), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255)
    return image


VARIANTS = {
    "copy": lambda image: image,
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=1.2, beta=8),
    "compressed": lambda image: cv2.imdecode(cv2.imencode(".jpg", image)[1], 0),
    "annotated": annotated,
    "cropped": lambda image: image[20:230, 30:215],
    "half": lambda image: image[:, :150],
    "cropped and scaled": lambda image: cv2.resize(image[20:230, 30:215], (330, 360)),
    "shrunk": lambda image: cv2.resize(image, (160, 150), interpolation=cv2.INTER_AREA),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_near_duplicate_is_found_among_others(variant: str) -> None:
    images = {f"scan {i}": scan(i) for i in range(6)}
    images["duplicate"] = VARIANTS[variant](scan(2))
    (duplicate,) = duplicates_of(images)
    assert (duplicate.first, duplicate.second) == ("scan 2", "duplicate")
    assert duplicate.correlation > 0.9
    assert (duplicate.inliers == 0) == (variant == "copy")


def test_a_shared_caption_makes_no_near_duplicates() -> None:
    images = {}
    for index in range(5):
        images[f"scan {index}"] = annotated(scan(index))
        images[f"scan {index}"][:16, :90] = annotated(scan(0))[:16, :90]
    assert duplicates_of(images) == []


def test_images_without_features_do_no_harm() -> None:
    images = {f"flat {value}": np.full((40, 50), value, np.uint8) for value in (0, 9, 255)}
    images |= {"tiny": np.zeros((1, 1), np.uint8), "scan": scan(0), "same": scan(0)}
    images["upright"] = images["flat 9"].T.copy()  # of the same bytes, but of another shape
    assert pairs(duplicates_of(images)) == {("scan", "same")}
    assert duplicates_of({"alone": scan(0)}) == []


def test_large_images_are_compared_at_working_size() -> None:
    large = np.asarray(cv2.resize(scan(1), (1600, 1400)), np.uint8)
    assert max(working_size(large).shape) == 400
    assert pairs(duplicates_of({"small": scan(1), "large": large, "other": scan(2)})) == {
        ("small", "large")
    }


@functools.cache
def round_view(index: int) -> np.ndarray:
    """(96, 96) uint8, a round field of view on black, as in fundus images, with its own texture."""
    texture = np.random.default_rng(index).normal(0, 40, (96, 96))
    image = 140 + cv2.GaussianBlur(texture, (0, 0), 1.5)
    row, column = np.mgrid[:96, :96] - 47.5
    return np.where(np.hypot(row, column) < 46, image, 0).clip(0, 255).astype(np.uint8)


def test_images_of_one_field_of_view_are_not_all_compared() -> None:
    images = [round_view(index) for index in range(80)]
    images.append(cv2.convertScaleAbs(round_view(7), alpha=1.1))
    features = [image_features(image) for image in images]
    thumbnails = np.stack([image.thumbnail for image in features])
    assert (thumbnails @ thumbnails.T).min() > MIN_THUMBNAIL_CORRELATION
    found = candidates(features)
    assert (7, 80) in found
    assert len(found) <= 2 * PARTNERS * len(images) < 81 * 80 / 2
    loaded = []

    def load(index: int) -> np.ndarray:
        loaded.append(index)
        return images[index]

    names = [str(index) for index in range(81)]
    assert pairs(find_near_duplicates(names, features, load)) == {("7", "80")}
    assert loaded == [7, 80]


def made_up(index: int, thumbnail: np.ndarray, bits: np.ndarray) -> ImageFeatures:
    points = np.zeros((len(bits), 2), np.float32)
    unit = (thumbnail / np.linalg.norm(thumbnail)).astype(np.float32)
    return ImageFeatures(
        digest=bytes([index]), blank=False, thumbnail=unit, points=points, bits=bits
    )


def test_the_partners_that_share_most_features_are_kept() -> None:
    bits = np.random.default_rng(0).integers(0, 2**64, (156, 4), np.uint64)
    images = [made_up(i, np.eye(32**2)[i], bits[4 * i : 4 * i + 60]) for i in range(24)]
    found = candidates(images)
    assert {(i, i + 1) for i in range(23)} <= found, "4 of 60 features are new in each"
    assert max(second - first for first, second in found) <= PARTNERS


def test_thumbnails_are_compared_by_what_sets_them_apart() -> None:
    """Ten pairs with something of their own in common, among images of what is common to all."""
    rng = np.random.default_rng(0)
    common, *own = rng.normal(0, 1, (31, 32**2))
    thumbnails = [0.01 * texture for texture in own[:10]]
    for shared, one, other in zip(own[:10], own[10:20], own[20:], strict=True):
        thumbnails += [0.1 * shared + 0.1 * one, 0.1 * shared + 0.1 * other]
    none = np.empty((0, 4), np.uint64)
    found = candidates([made_up(i, common + t, none) for i, t in enumerate(thumbnails)])
    assert {(i, i + 1) for i in range(10, 30, 2)} <= found


def test_images_of_one_source_are_paired_each_with_each() -> None:
    bits = np.random.default_rng(0).integers(0, 2**64, (60, 4), np.uint64)
    found = candidates([made_up(i, np.eye(32**2)[i], bits) for i in range(4)])
    assert found == set(itertools.combinations(range(4), 2))


def test_features_that_a_crowd_shares_make_no_pairs() -> None:
    """Such as those of a caption; comparing all with all would take for ever."""
    bits = np.random.default_rng(0).integers(0, 2**64, (60, 4), np.uint64)
    assert candidates([made_up(i, np.eye(32**2)[i], bits) for i in range(CROWD + 1)]) == set()


def test_thumbnails_of_all_blocks_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks bound the memory: what is a pair does not depend on where they begin."""
    monkeypatch.setattr(near_duplicates, "BLOCK", 4)
    textures = np.random.default_rng(0).normal(0, 1, (10, 32**2))
    textures[8], textures[9] = textures[1] + 0.1 * textures[8], textures[7] + 0.1 * textures[9]
    none = np.empty((0, 4), np.uint64)
    assert candidates([made_up(i, t, none) for i, t in enumerate(textures)]) == {(1, 8), (7, 9)}


def test_a_small_overlap_makes_no_near_duplicate() -> None:
    wide = phantom_case(3, size=400).image
    for start, found in ((140, {("left", "right")}), (158, set())):  # 36 and 28 %
        views = {"left": wide[:, :220], "right": wide[:, start : start + 220]}
        assert pairs(duplicates_of(views)) == found


def test_aligned_correlation_of_a_known_map() -> None:
    image = scan(3)
    shift = np.array([[1, 0, -30], [0, 1, -20]], float)
    correlation, overlap = aligned_correlation(image, image[20:220, 30:190], shift)
    assert correlation > 0.99
    assert overlap == pytest.approx(1, abs=0.01)
    away = np.array([[1, 0, 999], [0, 1, 0]], float)
    assert aligned_correlation(image, image, away) == (0, 0)


def test_connected_links_through_others() -> None:
    assert connected([("b", "a"), ("c", "b"), ("x", "y")]) == [["a", "b", "c"], ["x", "y"]]
    assert connected([]) == []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set of 12 scans: the test's 0 and 1 have near-duplicates in train, 2 in test itself."""
    tmp_path = tmp_path_factory.mktemp("prepared")
    images = {f"case_{i:02}": scan(i) for i in range(8)}
    images["case_08"] = scan(0)[16:240, 10:250]
    images["case_09"] = annotated(scan(1))
    images["case_10"] = scan(2)
    images["case_11"] = scan(5)[:, 20:]
    masks = {name: square(3, 3, 6, *image.shape) for name, image in images.items()}
    masks["case_06"][:] = 0
    masks["case_07"][:] = 255
    write_folder(tmp_path / "i", {f"{name}.png": png(image) for name, image in images.items()})
    write_folder(tmp_path / "m", {f"{name}.png": png(mask) for name, mask in masks.items()})
    test = ("case_00", "case_01", "case_02", "case_10")
    write_split(tmp_path / "s.json", Split(tuple(n for n in images if n not in test), test))
    arguments = f"mine --images {tmp_path}/i --masks {tmp_path}/m --splits {tmp_path}/s.json"
    assert prepare([*arguments.split(), "--root", str(tmp_path / "data")]) == 0
    return tmp_path / "data" / "mine"


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared set."""
    return Path(shutil.copytree(prepared, tmp_path / "data" / "mine"))


def test_check_of_a_data_set(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert prepare(["mine", "--check", "--root", str(data.parent)]) == 0
    printed = capsys.readouterr().out
    assert (
        "near-duplicates: 4 pairs (1 with identical pixels), 1 within train, 1 within test, 2 across"
        in printed
    )
    assert (
        "leaks: 2 of 4 test cases (50.0%) share a group with train, by near-duplicates" in printed
    )
    report = json.loads((data / "check" / "report.json").read_bytes())
    assert (report["train"], report["test"], report["readable"]) == (8, 4, 12)
    assert report["leaks"]["names"] == ["case_00", "case_01"]
    assert report["empty_masks"] == ["case_06"]
    assert report["full_masks"] == ["case_07"]
    assert sum(report["area_histogram"]["train"]) == 8
    assert report["width"] == {"min": 236, "median": 256.0, "max": 256}
    assert not report["problems"] and not report["odd_mask_values"] and not report["size_differs"]
    groups = json.loads((data / "check" / "same_source_groups.json").read_bytes())
    assert groups["groups"] == [
        ["case_00", "case_08"],
        ["case_01", "case_09"],
        ["case_02", "case_10"],
        ["case_05", "case_11"],
    ]
    for sheet in ("contact_sheet.png", "near_duplicates.png"):
        assert cv2.imread(str(data / "check" / sheet)).std() > 10
    assert leaked_test_cases(data) == {"case_00", "case_01"}


def test_blank_images_are_counted_and_link_nothing(data: Path) -> None:
    """As slices beyond the body are, of every patient."""
    blank = ["case_03", "case_04", "case_10"]
    for name in blank:
        (data / "images" / f"{name}.png").write_bytes(png(np.full((256, 256), 9, np.uint8)))
    report = check_data_set(data)
    assert report["blank_images"] == blank
    assert report["near_duplicates"]["pairs"] == 3
    assert report["leaks"]["names"] == ["case_00", "case_01"]
    assert "blank images: 3 (case_03; case_04; case_10)" in format_report(report)


def test_an_image_of_a_single_row_can_be_compared() -> None:
    assert working_size(np.zeros((1, 1000), np.uint8)).shape == (1, 400)
    assert working_size(np.zeros((1000, 1), np.uint8)).shape == (400, 1)


def test_leaks_of_another_split(data: Path) -> None:
    check_data_set(data)
    split = Split(train=("case_02", "case_08"), test=("case_10", "case_00", "case_11"))
    assert leaked_test_cases(data, split) == {"case_10", "case_00"}


def test_group_split_crosses_no_group(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="has not been checked for leaks"):
        write_group_split(data)
    assert prepare(["mine", "--check", "--group-split", "--root", str(data.parent)]) == 0
    path = data / "mine_grouped_train_test_names.json"
    assert str(path) in capsys.readouterr().out
    split = read_split(path)
    assert len(split.train) + len(split.test) == 12
    assert leaked_test_cases(data, split) == set()
    again = path.read_bytes()
    assert write_group_split(data).read_bytes() == again
    assert prepare(["mine", "--group-split", "--seed", "1", "--root", str(data.parent)]) == 0
    assert path.read_bytes() != again


METADATA = {"case_00": "C", "case_03": "A", "case_04": "B", "case_08": "A", "case_09": "D"}


def test_groups_join_metadata_and_near_duplicates(data: Path) -> None:
    (data / "groups.json").write_text(json.dumps(METADATA))
    split = read_split(write_group_split(data))  # before a check: the metadata alone
    assert ("case_03" in split.train) == ("case_08" in split.train)
    report = check_data_set(data)
    assert report["leaks"]["by"] == "metadata and near-duplicates"
    assert "share a group with train, by metadata and near-duplicates" in format_report(report)
    assert (
        report["near_duplicates"]["against_metadata"] == 1
    )  # case_00 is the source of case_08, case_01 is not in it
    groups = json.loads((data / "check" / "same_source_groups.json").read_bytes())["groups"]
    assert groups == [
        ["case_00", "case_03", "case_08"],  # 00 and 08 are near-duplicates, 03 and 08 one patient's
        ["case_01", "case_09"],
        ["case_02", "case_10"],
        ["case_05", "case_11"],
    ]
    assert leaked_test_cases(data) == {"case_00", "case_01"}
    for seed in range(5):
        assert leaked_test_cases(data, read_split(write_group_split(data, seed))) == set()


def test_everything_that_is_wrong_is_reported(data: Path) -> None:
    (data / "images" / "case_11.png").write_bytes(b"junk")
    (data / "masks" / "case_04.png").unlink()
    (data / "masks" / "case_05.png").write_bytes(png(square(3, 3, 6, 128, 128)))
    (data / "masks" / "case_09.png").write_bytes(png(square(3, 3, 6, 256, 100)))
    soft = cv2.GaussianBlur(square(9, 9, 90, 256, 256), (9, 9), 0)
    (data / "masks" / "case_02.png").write_bytes(png(soft))
    (data / "images" / "stray.png").write_bytes(png(picture(1)))
    report = check_data_set(data)
    assert report["problems"] == {
        "case_04": "no mask",
        "case_11": "case_11.png: not a PNG, JPEG, BMP or TIFF image",
    }
    assert report["size_differs"] == [
        "case_05: image 256 x 256, mask 128 x 128",
        "case_09: image 256 x 256, mask 100 x 256",
    ]
    assert report["aspect_differs"] == ["case_09"]
    assert list(report["odd_mask_values"]) == ["case_02"]
    counts = report["near_duplicates"]
    assert (counts["within_train"], counts["within_test"], counts["across"]) == (0, 1, 2)
    assert "images/stray.png" in report["files_of_no_case"]
    text = format_report(report)
    for expected in ("unusable cases: 2 (case_04", "training would stop: 1 (case_09)", "stray.png"):
        assert expected in text

    assert report["files_of_no_case"] == ["images/stray.png"]


@pytest.mark.parametrize(
    ("folder", "file"), [("mine", "mine"), ("MINE", "mine"), ("kvasir", "kvasir")]
)
@pytest.mark.parametrize("ending", [".json", ".pkl"])
def test_a_folder_laid_out_as_published_is_checked(
    data: Path, folder: str, file: str, ending: str
) -> None:
    split = data / "mine_train_test_names.json"
    names = json.loads(split.read_bytes())
    split.unlink()
    (data / "dataset.json").unlink()
    path = data / f"{file}_train_test_names{ending}"
    path.write_bytes(json.dumps(names).encode() if ending == ".json" else pickle.dumps(names))
    published = data.rename(data.parent / folder)
    command = [folder, "--check", "--group-split", "--root", str(data.parent)]
    assert prepare(command) == 0
    assert leaked_test_cases(published) == {"case_00", "case_01"}
    (grouped,) = published.glob("*_grouped_train_test_names.json")
    assert leaked_test_cases(published, read_split(grouped)) == set()
    assert prepare(command) == 0  # the split by groups is not taken for the data set's own


@pytest.mark.parametrize("name", ["absent", "mine"])
def test_what_cannot_be_checked(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    assert prepare([name, "--check", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "there is no data set" in error
    assert f"{name}_train_test_names.json or .pkl" in error
    with pytest.raises(UserError, match=r"python -m datasets\.prepare --check absent"):
        leaked_test_cases(tmp_path / "absent")


def test_near_duplicates_of_real_busi(shared: Path, tmp_path: Path) -> None:
    """Known near-duplicates of test images, and images that share no more than a caption."""
    known = {
        "benign_52": "benign_134",
        "malignant_98": "malignant_99",
        "benign_333": "malignant_78",
    }
    captions = ("benign_1", "benign_3", "benign_318", "benign_210", "benign_293", "benign_298")
    names = sorted({*known, *known.values(), *captions})
    split = Split(train=tuple(n for n in names if n not in known), test=tuple(sorted(known)))
    write_split(tmp_path / "split.json", split)
    archive = shared / "data" / "Dataset_BUSI_with_GT.zip"
    arguments = f"busi --source {archive} --splits {tmp_path}/split.json --root {tmp_path}/data"
    assert prepare(arguments.split()) == 0
    check_data_set(tmp_path / "data" / "busi")
    assert leaked_test_cases(tmp_path / "data" / "busi") == set(known)


@pytest.mark.parametrize(("correlation", "found"), [(0.89, False), (0.91, True)])
def test_near_duplicates_need_a_high_correlation(
    correlation: float, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = near_duplicates.image_features(scan(0)), near_duplicates.image_features(scan(0)[2:])
    monkeypatch.setattr(near_duplicates, "aligned_correlation", lambda *_: (correlation, 1.0))
    result = near_duplicates.confirm("a", "b", near, lambda: (scan(0), scan(0)))
    assert (result is not None) == found
