from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import pytest

from datasets.catalogue import CATALOGUE
from datasets.image_files.masks import binary_mask
from datasets.preparation import writing
from datasets.preparation.layouts import SourceCase
from datasets.preparation.staging import Staging, staged
from datasets.splits import Split, read_split, write_split
from tests.dataset_archives import (
    bmp,
    busi_files,
    picture,
    png,
    prepare,
    square,
    write_folder,
    write_zip,
)
from utils.errors import UserError
from utils.locks import try_lock

BUSI_SPLIT = Split(
    train=("benign_1", "benign_2", "benign_3", "malignant_1", "malignant_2"),
    test=("benign_4", "malignant_3"),
)


def read_grey(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def busi(tmp_path: Path) -> list[str]:
    """Arguments that prepare a small BUSI into tmp_path/data."""
    write_zip(tmp_path / "Dataset_BUSI_with_GT.zip", busi_files())
    write_split(tmp_path / "names.json", BUSI_SPLIT)
    source, splits = tmp_path / "Dataset_BUSI_with_GT.zip", tmp_path / "names.json"
    return f"busi --source {source} --splits {splits} --root {tmp_path}/data".split()


@pytest.mark.parametrize("names", [["", "_with_GT"], [""], ["_with_GT"]])
def test_the_folder_that_holds_the_archive_will_do(
    busi: list[str], tmp_path: Path, names: list[str]
) -> None:
    """Under the name that it has at the source, that of its content, as elsewhere, or both."""
    (tmp_path / "downloads").mkdir()
    for name in names:
        archive = tmp_path / "downloads" / f"Dataset_BUSI{name}.zip"
        shutil.copy(tmp_path / "Dataset_BUSI_with_GT.zip", archive)
    busi[busi.index("--source") + 1] = str(tmp_path / "downloads")
    assert prepare(busi) == 0


def test_busi_images_unchanged_and_masks_merged(busi: list[str], tmp_path: Path) -> None:
    assert prepare(busi) == 0
    folder = tmp_path / "data" / "busi"
    files = busi_files()
    names = {*BUSI_SPLIT.train, *BUSI_SPLIT.test}
    assert {p.stem for p in (folder / "images").iterdir()} == names
    assert {p.stem for p in (folder / "masks").iterdir()} == names
    original = files["Dataset_BUSI_with_GT/benign/benign (2).png"]
    assert (folder / "images" / "benign_2.png").read_bytes() == original
    union = square(2, 2) | square(15, 20) | square(17, 22)
    assert np.array_equal(read_grey(folder / "masks" / "benign_2.png"), union)
    assert np.array_equal(read_grey(folder / "masks" / "malignant_3.png"), square(2, 3))
    assert read_split(folder / "busi_train_test_names.json") == BUSI_SPLIT
    manifest = json.loads((folder / "dataset.json").read_bytes())
    assert (manifest["name"], manifest["train"], manifest["test"]) == ("busi", 5, 2)
    assert {p.name for p in (tmp_path / "data").iterdir()} == {"busi"}


@pytest.mark.parametrize("above", ["", "Dataset_BUSI_with_GT", "Dataset_BUSI_with_GT/benign/.."])
def test_a_folder_gives_what_the_zip_gives(busi: list[str], tmp_path: Path, above: str) -> None:
    prepare(busi)
    unpacked = write_folder(tmp_path / "unpacked", busi_files())
    other = [*busi[:2], str(unpacked / above), *busi[3:-1], str(tmp_path / "from_folder")]
    assert prepare(other) == 0
    expected = contents(tmp_path / "data" / "busi")
    got = contents(tmp_path / "from_folder" / "busi")
    assert {k: v for k, v in got.items() if k != "dataset.json"} == {
        k: v for k, v in expected.items() if k != "dataset.json"
    }


def test_a_folder_of_archives_stands_for_them(busi: list[str], tmp_path: Path) -> None:
    assert prepare([*busi[:2], str(tmp_path), *busi[3:]]) == 0
    assert (tmp_path / "data" / "busi" / "dataset.json").is_file()


def test_without_splits_a_seeded_split_is_drawn(busi: list[str], tmp_path: Path) -> None:
    without = [*busi[:3], *busi[5:]]
    assert prepare(without) == 0
    drawn = read_split(tmp_path / "data" / "busi" / "busi_train_test_names.json")
    assert (len(drawn.train), len(drawn.test)) == (7, 2)
    assert not any(name.startswith("normal") for name in drawn.train + drawn.test)
    assert prepare([*without[:-1], str(tmp_path / "again")]) == 0
    assert read_split(tmp_path / "again" / "busi" / "busi_train_test_names.json") == drawn
    assert prepare([*without[:-1], str(tmp_path / "other"), "--seed", "1"]) == 0
    assert read_split(tmp_path / "other" / "busi" / "busi_train_test_names.json") != drawn


def test_normal_cases_only_when_asked_for(busi: list[str], tmp_path: Path) -> None:
    assert prepare([*busi, "--include-normal"]) == 0
    folder = tmp_path / "data" / "busi"
    split = read_split(folder / "busi_train_test_names.json")
    assert split.train[:5] == BUSI_SPLIT.train
    assert sorted(split.train[5:] + split.test[2:]) == ["normal_1", "normal_2"]
    assert not read_grey(folder / "masks" / "normal_1.png").any()
    other = [*busi[:-1], str(tmp_path / "other"), "--include-normal", "--seed", "5"]
    assert prepare(other) == 0
    drawn = read_split(tmp_path / "other" / "busi" / "busi_train_test_names.json").test
    assert drawn[:2] == split.test[:2] and drawn[2:] != split.test[2:]


def test_normal_cases_leave_the_cases_that_choose_the_checkpoint(
    busi: list[str], tmp_path: Path
) -> None:
    write_split(tmp_path / "names.json", Split(BUSI_SPLIT.train, BUSI_SPLIT.test, ("malignant_2",)))
    assert prepare([*busi, "--include-normal"]) == 0
    split = read_split(tmp_path / "data" / "busi" / "busi_train_test_names.json")
    assert split.val == ("malignant_2",)
    assert len(split.train + split.test) == 9


def test_again_says_complete_and_changes_nothing(
    busi: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(busi)
    folder = tmp_path / "data" / "busi"
    before = contents(folder)
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    capsys.readouterr()
    assert prepare(busi) == 0
    assert "is complete: 5 train and 2 test cases" in capsys.readouterr().out
    assert prepare(["busi", "--root", str(tmp_path / "data")]) == 0
    assert contents(folder) == before
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == times


@pytest.mark.parametrize("packed", [False, True])
def test_other_files_of_the_same_name_are_not_passed_off_as_those_prepared(
    tmp_path: Path, packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(site: str, count: int = 5) -> list[str]:
        paths = []
        for kind, pixels in (("images", picture(1)), ("masks", square(3, 3))):
            files = {f"{i}.bmp": bmp(pixels) for i in range(count)}
            folder = write_folder(tmp_path / site / kind, {**files, "notes.txt": site.encode()})
            paths.append(write_zip(folder.with_suffix(".zip"), files) if packed else folder)
        return f"mine --images {paths[0]} --masks {paths[1]} --root {tmp_path}/data".split()

    assert prepare(command("a")) == 0
    assert "nothing was done" not in capsys.readouterr().out
    assert prepare(command("moved")) == 0
    assert "is complete: 4 train and 1 test cases; it was so already, and nothing was done" in (
        capsys.readouterr().out
    )
    assert prepare(command("b", count=6)) == 2
    image, mask = len(bmp(picture(1))), len(bmp(square(3, 3)))
    assert (
        f"was prepared otherwise: found 5 files of {5 * image:,} bytes, 5 files of {5 * mask:,} bytes, asked for "
        f"6 files of {6 * image:,} bytes, 6 files of {6 * mask:,} bytes. Delete it"
    ) in capsys.readouterr().err
    gone = [word.replace("/a/", "/gone/") for word in command("a")]
    capsys.readouterr()
    assert prepare(gone) == 0, "the source need not be kept"
    told = capsys.readouterr()
    assert "nothing was done" in told.out and "/gone/images" in told.err
    assert "is not there, so that" in told.err and "was not compared with it" in told.err
    manifest = tmp_path / "data" / "mine" / "dataset.json"
    before = json.loads(manifest.read_text())
    del before["found"]
    manifest.write_text(json.dumps(before))
    assert prepare(command("b", count=6)) == 0, "as earlier versions prepared it"


def test_another_archive_of_a_published_set_is_not_passed_off_as_that_prepared(
    busi: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(busi) == 0
    write_zip(tmp_path / "Dataset_BUSI_with_GT.zip", busi_files(benign=7))
    assert prepare(busi) == 2
    error = capsys.readouterr().err
    assert "was prepared otherwise: found 24 files of" in error and "asked for 26 files of" in error


@pytest.mark.parametrize("change", [["--include-normal"], ["--seed", "1"], ["--splits", "other"]])
def test_a_complete_set_is_not_passed_off_as_another(
    busi: list[str], tmp_path: Path, change: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(busi)
    if change[0] == "--splits":
        write_split(tmp_path / "other.json", Split(("benign_1",), ("benign_2",)))
        busi[busi.index("--splits") + 1] = str(tmp_path / "other.json")
        change = []
    assert prepare([*busi, *change]) == 2
    assert "was prepared otherwise" in capsys.readouterr().err


def test_all_problems_are_one_error(
    busi: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = busi_files()
    top = "Dataset_BUSI_with_GT"
    del files[f"{top}/benign/benign (1).png"]
    del files[f"{top}/benign/benign (4)_mask.png"]
    files[f"{top}/benign/benign (3)_mask.png"] = png(np.zeros((24, 40), np.uint8))
    files[f"{top}/benign/benign (2)_mask_1.png"] = png(np.zeros((48, 64), np.uint8))
    files[f"{top}/malignant/malignant (1).png"] = b"not an image"
    files[f"{top}/malignant/malignant (2).png"] = files[f"{top}/malignant/malignant (2).png"][:60]
    files[f"{top}/copy/malignant (3).png"] = png(picture(0))
    write_zip(tmp_path / "Dataset_BUSI_with_GT.zip", files)
    assert prepare(busi) == 2
    error = capsys.readouterr().err
    for expected in (
        "busi is not prepared, 7 problem(s)",
        "benign_1: not in the source",
        "benign_4: no mask for the image",
        "(3)_mask.png has 40 x 24 px, the image 32 x 24",
        "benign (2)_mask_1.png differs in size from the case's other masks",
        "malignant (1).png: not a PNG, JPEG, BMP or TIFF image",
        "malignant (2).png: cannot be decoded: damaged or cut short",
        "malignant_3: two images",
    ):
        assert expected in error
    assert not (tmp_path / "data" / "busi").exists()
    # fixed, the same command succeeds
    write_zip(tmp_path / "Dataset_BUSI_with_GT.zip", busi_files())
    assert prepare(busi) == 0


def test_a_run_that_names_its_cases_otherwise_does_not_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c", "d", "e", "f"):
        write_folder(tmp_path / "images", {f"{name}_x.png": png(picture(1))})
        write_folder(tmp_path / "masks", {f"{name}_x.png": png(square(3, 3, 6))})
    arguments = ["mine", "--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]
    arguments += ["--root", str(tmp_path / "data")]
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prepare(arguments) == 130
    assert prepare([*arguments, "--image-suffix", "_x", "--mask-suffix", "_x"]) == 0
    kept = {path.name for path in (tmp_path / "data" / "mine" / "images").iterdir()}
    assert kept == {f"{name}.png" for name in "abcdef"}


def test_an_interrupted_run_is_resumed_and_never_looks_complete(
    busi: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write = writing.write_case
    written: list[str] = []

    def interrupted(spec: object, case: SourceCase, staging: Staging, limits: object) -> object:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(case.name)
        return write(spec, case, staging, limits)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "available_cores", lambda: 1)
    monkeypatch.setattr(writing, "write_case", interrupted)
    assert prepare(busi) == 130
    assert "the same command resumes from here" in capsys.readouterr().err
    partial = tmp_path / "data" / ".busi.partial"
    assert not (tmp_path / "data" / "busi").exists()
    kept = {p: p.stat().st_mtime_ns for p in (partial / "images").iterdir()}
    assert len(kept) == 3
    # as after a power failure: a mask without its end
    torn = partial / "masks" / f"{written[0]}.png"
    torn.write_bytes(torn.read_bytes()[:-8])

    monkeypatch.setattr(writing, "write_case", write)
    assert prepare(busi) == 0
    folder = tmp_path / "data" / "busi"
    assert not partial.exists()
    unchanged = {
        p.name for p, t in kept.items() if (folder / "images" / p.name).stat().st_mtime_ns == t
    }
    assert unchanged == {f"{name}.png" for name in written[1:3]}
    prepare([*busi[:-1], str(tmp_path / "whole")])
    assert contents(folder) == contents(tmp_path / "whole" / "busi")


def test_an_image_that_a_power_failure_cut_is_written_again(
    busi: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prepare(busi) == 130
    torn = tmp_path / "data" / ".busi.partial" / "images" / "benign_1.png"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-8])
    assert prepare(busi) == 0
    assert (tmp_path / "data" / "busi" / "images" / "benign_1.png").read_bytes() == whole


def test_notes_survive_an_interruption_and_are_summed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = np.full((24, 32), 128, np.uint8)
    grey[0] = 60
    write_folder(tmp_path / "images", {f"{i}.png": png(picture(i)) for i in range(8)})
    write_folder(tmp_path / "masks", {f"{i}.png": png(grey) for i in range(8)})
    command = f"mine --images {tmp_path}/images --masks {tmp_path}/masks --root {tmp_path}/data"
    write = writing.write_case
    done: list[object] = []

    def interrupted(*arguments: object) -> object:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(arguments)
        return write(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(writing, "available_cores", lambda: 1)
        patch.setattr(writing, "write_case", interrupted)
        assert prepare(command.split()) == 130
    capsys.readouterr()
    assert prepare(command.split()) == 0
    error = capsys.readouterr().err
    folder = tmp_path / "data" / "mine"
    assert f"8 odd files, listed in {folder / 'notes.txt'}:" in error and "and 3 more" in error
    assert error.count("values from 60 to 128") == 5
    assert len((folder / "notes.txt").read_text().splitlines()) == 8
    assert "masks: 0 of 8 empty; median foreground 95.8 % of the image" in error
    assert not (folder / "notes").exists()


def test_a_mask_that_was_damaged_is_written_again(
    busi: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prepare(busi) == 130
    damaged = tmp_path / "data" / ".busi.partial" / "masks" / "benign_1.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:20] + bytes(len(whole) - 40) + whole[-20:])
    assert prepare(busi) == 0
    assert (tmp_path / "data" / "busi" / "masks" / "benign_1.png").read_bytes() == whole


def test_what_came_from_another_folder_is_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its files have the same names, sizes and times."""
    for version in range(2):
        images = {f"{i}.bmp": bmp(picture(i + 10 * version)) for i in range(4)}
        write_folder(tmp_path / f"v{version}" / "images", images)
        write_folder(
            tmp_path / f"v{version}" / "masks", {f"{i}.bmp": bmp(square(3, 3)) for i in range(4)}
        )
    for path in tmp_path.rglob("*.bmp"):
        os.utime(path, (1e9, 1e9))
    commands = [
        f"mine --images {folder}/images --masks {folder}/masks --root {tmp_path}/data".split()
        for folder in (tmp_path / "v0", tmp_path / "v1")
    ]
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prepare(commands[0]) == 130
    assert prepare(commands[1]) == 0
    prepared = tmp_path / "data" / "mine" / "images" / "2.bmp"
    assert prepared.read_bytes() == (tmp_path / "v1" / "images" / "2.bmp").read_bytes()


def test_a_resumed_run_keeps_no_images_over_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    large, mask = picture(1, 1000, 1100), square(3, 3, height=1000, width=1100)
    write_folder(tmp_path / "images", {f"{i}.png": png(picture(i)) for i in range(3)})
    write_folder(tmp_path / "masks", {f"{i}.png": png(square(3, 3)) for i in range(3)})
    write_folder(tmp_path, {"images/3.png": png(large), "masks/3.png": png(mask)})
    command = f"mine --images {tmp_path}/images --masks {tmp_path}/masks --root {tmp_path}/data"
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prepare(command.split()) == 130
    assert prepare([*command.split(), "--limit", "megapixels=1"]) == 2
    assert "1100 x 1000 px, over the limit of 1 megapixels" in capsys.readouterr().err


def test_a_partial_run_of_another_plan_is_not_mixed_in(busi: list[str], tmp_path: Path) -> None:
    partial = tmp_path / "data" / ".busi.partial"
    for part in ("images", "masks"):
        write_folder(partial / part, {"benign_1.png": png(picture(9)), "stray.png": b""})
    assert prepare(busi) == 0
    folder = tmp_path / "data" / "busi"
    original = busi_files()["Dataset_BUSI_with_GT/benign/benign (1).png"]
    assert (folder / "images" / "benign_1.png").read_bytes() == original
    assert not (folder / "images" / "stray.png").exists()


def test_a_file_system_without_locks_is_told(
    busi: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("utils.locks.fcntl.flock", refuse)
    assert prepare(busi) == 2
    assert "busi.lock cannot be locked (No locks available)" in capsys.readouterr().err


def test_two_runs_do_not_work_on_one_data_set(
    busi: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with staged(tmp_path / "data", "busi"):
        assert prepare(busi) == 2
    assert "another process is preparing" in capsys.readouterr().err
    assert prepare(busi) == 0


def test_a_lock_that_its_holder_deletes_as_it_ends_is_not_held_by_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = ExitStack()

    def lock_late(file: IO[str]) -> bool:
        """The file is opened; before it is locked, its holder ends, and another process begins."""
        monkeypatch.undo()
        (tmp_path / ".busi.lock").unlink()
        others.enter_context(staged(tmp_path, "busi"))
        return try_lock(file)

    monkeypatch.setattr("datasets.preparation.staging.try_lock", lock_late)
    refused = pytest.raises(UserError, match="another process is preparing")
    with others, refused, staged(tmp_path, "busi"):
        pytest.fail("two processes work on it")


def test_a_lock_that_its_holder_deletes_as_it_ends_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock_late(file: IO[str]) -> bool:
        monkeypatch.undo()
        (tmp_path / ".busi.lock").unlink()
        return try_lock(file)

    monkeypatch.setattr("datasets.preparation.staging.try_lock", lock_late)
    refused = pytest.raises(UserError, match="another process is preparing")
    with staged(tmp_path, "busi"), refused, staged(tmp_path, "busi"):
        pytest.fail("two processes work on it")


def test_a_data_set_that_another_process_has_prepared_meanwhile_stays(tmp_path: Path) -> None:
    (tmp_path / "busi").mkdir()
    with pytest.raises(UserError, match=r"has prepared .*busi meanwhile"), staged(tmp_path, "busi"):
        pytest.fail("it would be replaced")
    assert [path.name for path in tmp_path.iterdir()] == ["busi"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "which data set"),
        ("busi", "nothing to prepare busi from: give --source"),
        ("busi --source nowhere.zip", "nowhere.zip: no such file or folder"),
        ("my-set", "'my-set' is not in the catalogue"),
        ("a/b --images x --masks y", "is not a valid name for a data set"),
        ("busi --source x --limit members=0", "expected NAME=N"),
        ("busi --source x --limit cats=1", "NAME one of members"),
        ("busi --source x --splits absent.pkl", "absent.pkl: cannot read the split file"),
        ("phantom --domain c", "expected one of a, b"),
        ("phantom --cases 1", "expected at least 2"),
        (
            "phantom --groups patients.csv",
            "no use for --groups; it takes --cases, --domain, --seed",
        ),
        ("glas --source x.zip --include-normal --cases 3", "no use for --cases, --include-normal;"),
        (
            "mine --images a --masks b --domain b",
            "no use for --domain; it takes --any-label, --groups, --image-prefix",
        ),
        (
            "bsui --source x.zip",
            "'bsui' is your own data (--list shows the published), so it has no use for --source",
        ),
        ("phantom-b --source x --splits y.json", "it has no use for --source, --splits;"),
        ("own --images a --masks b", "'own' is no name for a data set: sh train.sh own"),
        (
            "my_grouped --images a --masks b",
            "'my_grouped' is no name for a data set: so are called",
        ),
        (
            "checks --images a --masks b",
            "'checks' is no name for a data set: datasets/checks is a folder of the code",
        ),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare([*arguments.split(), "--root", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_negative_seed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(["phantom", "--seed", "-1", "--root", str(tmp_path)]) == 2
    assert "argument --seed: expected at least 0, got -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--images", "--masks", "--source", "--splits", "--groups", "--mask-suffix"]
)
def test_an_option_given_twice_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(["mine", option, "a", option, "b"]) == 2
    assert f"argument {option}: given twice" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_the_run_is_resumed(
    busi: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name.startswith(".malignant"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert prepare(busi) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "Traceback" not in error
    assert not (tmp_path / "data" / "busi").exists()
    assert prepare(busi) == 0
    assert "resuming in" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mine.txt", "dataset.json"])
def test_a_folder_that_is_no_prepared_set_is_left_alone(
    name: str, busi: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = b'{"name": "liver", "numTraining": 1, "training": [], "test": []}'  # as nnU-Net's
    write_folder(tmp_path / "data" / "busi", {name: content})
    for arguments in (busi, ["busi", "--root", str(tmp_path / "data")]):
        assert prepare(arguments) == 2
        assert "is not a data set prepared here" in capsys.readouterr().err
    assert contents(tmp_path / "data" / "busi") == {name: content}


@pytest.mark.parametrize(
    ("values", "foreground", "odd"),
    [
        ([0, 1], [False, True], False),
        ([0, 255], [False, True], False),
        ([0, 0], [False, False], False),
        ([255, 255], [True, True], False),
        ([0, 10, 126, 128, 255], [False, False, False, True, True], True),
        ([0, 128], [False, True], True),
        ([1, 1], [True, True], False),
    ],
)
def test_mask_values(values: list[int], foreground: list[bool], odd: bool) -> None:
    mask, note = binary_mask(np.array([values], np.uint8))
    assert mask.tolist() == [foreground]
    assert (note is not None) == odd


def test_list_names_source_licence_archives_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(["--list"]) == 0
    printed = capsys.readouterr().out
    for spec in CATALOGUE.values():
        for text in (spec.name, spec.source, spec.licence, *spec.archives):
            assert text in printed
    assert "517 train, 130 test" in printed


def test_help_starts_without_torch() -> None:
    code = "import sys; from datasets.prepare import main; main(['--list']); print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.endswith("False\n")


def test_real_busi(shared: Path, tmp_path: Path) -> None:
    data, splits = shared / "data", shared / "splits"
    arguments = f"busi --source {data}/Dataset_BUSI_with_GT.zip --root {tmp_path}"
    assert prepare([*arguments.split(), "--splits", f"{splits}/busi_train_test_names.pkl"]) == 0
    folder = tmp_path / "busi"
    split = read_split(folder / "busi_train_test_names.json")
    assert (len(split.train), len(split.test)) == (517, 130)
    assert len(list((folder / "images").iterdir())) == 647
    assert len(list((folder / "masks").iterdir())) == 647
