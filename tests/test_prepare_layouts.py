"""Each data set from a small archive in its published layout, own data, and the phantom."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.cases import Case, CaseError, open_data_set, read_case
from datasets.checks.integrity import check_data_set
from datasets.image_files.decoding import decode, read_pixels
from datasets.image_files.headers import ImageError, orientation
from datasets.image_files.masks import may_fit_as_stored
from datasets.image_files.pictures import read_picture
from datasets.image_files.windowing import parse_window
from datasets.phantom import phantom_case
from datasets.preparation.group_tables import read_group_table
from datasets.preparation.staging import Staging
from datasets.splits import Split, random_split, read_split, write_split
from tests.dataset_archives import (
    bmp,
    jpg,
    picture,
    png,
    prepare,
    square,
    turned,
    write_folder,
    write_zip,
)


def read(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels


def run(name: str, root: Path, *arguments: object) -> Path:
    assert prepare([name, "--root", str(root / "data"), *map(str, arguments)]) == 0
    return root / "data" / name


@pytest.fixture
def ham10000(tmp_path: Path) -> Path:
    """Folder with the four HAM10000 files; part 2 and the masks keep theirs in folders."""
    names = [f"ISIC_{24306 + i:07}" for i in range(10)]
    images = {f"{name}.jpg": jpg(picture(i)) for i, name in enumerate(names)}
    masks = {f"{name}_segmentation.png": png(square(i, i)) for i, name in enumerate(names)}
    first = {name: images[name] for name in list(images)[:5]}
    second = {f"HAM10000_images_part_2/{name}": images[name] for name in list(images)[5:]}
    folder = "HAM10000_segmentations_lesion_tschandl"
    write_zip(tmp_path / "HAM10000_images_part_1.zip", first)
    write_zip(tmp_path / "HAM10000_images_part_2.zip", second)
    write_zip(tmp_path / f"{folder}.zip", {f"{folder}/{n}": m for n, m in masks.items()})
    # lesions of three images: 0 1 2, 3 4 5, 6 7 8, 9
    rows = [f"HAM_{i // 3},{name},nv,histo" for i, name in enumerate(names)]
    table = "\n".join(["lesion_id,image_id,dx,dx_type", *rows])
    (tmp_path / "HAM10000_metadata.csv").write_text(table)
    return tmp_path


def test_ham10000_from_a_folder_of_archives(ham10000: Path) -> None:
    split = Split(train=("ISIC_0024306", "ISIC_0024313"), test=("ISIC_0024309",))
    write_split(ham10000 / "split.json", split)
    folder = run("ham10000", ham10000, "--source", ham10000, "--splits", ham10000 / "split.json")
    assert (folder / "images" / "ISIC_0024313.jpg").read_bytes() == jpg(picture(7))
    assert np.array_equal(read(folder / "masks" / "ISIC_0024309_segmentation.png"), square(3, 3))
    assert len(list((folder / "images").iterdir())) == 3
    assert json.loads((folder / "groups.json").read_bytes()) == {
        "ISIC_0024306": "HAM_0",
        "ISIC_0024309": "HAM_1",
        "ISIC_0024313": "HAM_2",
    }


def test_ham10000_from_several_paths_splits_by_lesion(ham10000: Path) -> None:
    archives = sorted(ham10000.glob("HAM*"))
    folder = run("ham10000", ham10000, "--source", *archives)
    split = read_split(folder / "ham10000_train_test_names.json")
    groups = json.loads((folder / "groups.json").read_bytes())
    assert len(split.train) + len(split.test) == 10
    assert not {groups[n] for n in split.train} & {groups[n] for n in split.test}


def test_the_split_by_groups_opens_like_any_other(ham10000: Path) -> None:
    folder = run("ham10000", ham10000, "--source", ham10000)
    assert prepare(["ham10000", "--group-split", "--root", str(folder.parent)]) == 0
    opened = open_data_set(folder / "ham10000_grouped_train_test_names.json")
    assert len(opened.train) + len(opened.test) == 10


def test_ham10000_with_an_archive_missing_lists_its_cases(
    ham10000: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ham10000 / "HAM10000_images_part_2.zip").unlink()
    split = Split(train=("ISIC_0024306", "ISIC_0024313"), test=("ISIC_0024309", "ISIC_0024315"))
    write_split(ham10000 / "split.json", split)
    arguments = (
        f"ham10000 --source {ham10000} --splits {ham10000}/split.json --root {ham10000}/data"
    )
    assert prepare(arguments.split()) == 2
    error = capsys.readouterr().err
    assert "2 problem(s)" in error
    assert "ISIC_0024313: not in the source" in error
    assert "ISIC_0024315: not in the source" in error


@pytest.mark.parametrize("with_metadata", [True, False])
def test_the_split_of_another_data_set_is_named_as_such(
    ham10000: Path, with_metadata: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if not with_metadata:
        (ham10000 / "HAM10000_metadata.csv").unlink()
    names = [f"testA_{i}" for i in range(1, 10)]
    write_split(ham10000 / "glas.json", Split(tuple(names[3:]), tuple(names[:3]), tuple(names[5:])))
    arguments = f"ham10000 --source {ham10000} --splits {ham10000}/glas.json --root {ham10000}/data"
    assert prepare([*arguments.split(), "--skip-unusable"]) == 2
    error = capsys.readouterr().err
    assert (
        f"none of the 9 cases of {ham10000}/glas.json is in the source: it names 'testA_1', 'testA_2', "
        "'testA_3' and 6 more, the source has 'ISIC_0024306', 'ISIC_0024307', 'ISIC_0024308' and 7 more; "
        "is it the split of another data set?"
    ) in error
    assert error.count("\n") == 1
    assert not (ham10000 / "data" / "ham10000").exists()


@pytest.mark.parametrize("name", ["HAM10000_metadata.tab", "HAM10000_metadata"])
@pytest.mark.parametrize("given", ["folder", "file", "--groups"])
def test_metadata_as_other_servers_give_it(ham10000: Path, name: str, given: str) -> None:
    source = ham10000 / "HAM10000_metadata.csv"
    table = source.read_text()
    source.unlink()
    (ham10000 / name).write_text(table.replace(",", "\t") if name.endswith(".tab") else table)
    arguments: list[object] = ["--source", ham10000]
    if given == "file":
        arguments = ["--source", *ham10000.glob("*.zip"), ham10000 / name]
    elif given == "--groups":
        arguments += ["--groups", ham10000 / name]
    folder = run("ham10000", ham10000, *arguments)
    groups = json.loads((folder / "groups.json").read_bytes())
    assert groups["ISIC_0024306"] == groups["ISIC_0024308"] == "HAM_0"
    split = read_split(folder / "ham10000_train_test_names.json")
    assert not {groups[n] for n in split.train} & {groups[n] for n in split.test}


def test_metadata_without_the_columns_is_an_error(
    ham10000: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ham10000 / "HAM10000_metadata.csv").write_text("image,lesion\na,b\n")
    assert prepare(["ham10000", "--source", str(ham10000), "--root", f"{ham10000}/data"]) == 2
    assert "expected a CSV with the columns image_id and lesion_id" in capsys.readouterr().err


def test_bus(tmp_path: Path) -> None:
    files = {}
    for number in range(1, 11):
        files[f"BUS/original/{number:06}.png"] = png(picture(number))
        files[f"BUS/GT/{number:06}.png"] = png(square(number, number))
    files["BUS/DatasetB.xlsx"] = b"a table"
    folder = run("bus", tmp_path, "--source", write_zip(tmp_path / "BUS.zip", files))
    split = read_split(folder / "bus_train_test_names.json")
    assert (len(split.train), len(split.test)) == (8, 2)
    assert (folder / "images" / "000003.png").read_bytes() == png(picture(3))
    assert np.array_equal(read(folder / "masks" / "000003.png"), square(3, 3))


def test_kvasir_instrument_unpacked(tmp_path: Path) -> None:
    files = {"kvasir-instrument/bboxes.json": b"{}"}
    for name in ("ckcu8ty6z00003b5yzfaezbs5", "ckd0afl7u000a3b5y3crqjxla"):
        files[f"kvasir-instrument/images/{name}.jpg"] = jpg(picture(1))
        files[f"kvasir-instrument/masks/{name}.png"] = png(np.dstack([square(1, 2)] * 3))
    folder = run(
        "kvasir-instrument", tmp_path, "--source", write_folder(tmp_path / "kvasir", files)
    )
    assert np.array_equal(read(folder / "masks" / "ckcu8ty6z00003b5yzfaezbs5.png"), square(1, 2))
    assert (folder / "images" / "ckd0afl7u000a3b5y3crqjxla.jpg").read_bytes() == jpg(picture(1))


def test_kvasir_instrument_with_its_tars_inside_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"kvasir-instrument/{part}.tar.gz": b"\x1f\x8b" for part in ("images", "masks")}
    archive = write_zip(tmp_path / "kvasir-instrument.zip", files)
    arguments = ["kvasir-instrument", "--root", f"{tmp_path}/data", "--source", str(archive)]
    assert prepare(arguments) == 2
    error = capsys.readouterr().err
    assert "'kvasir-instrument/images.tar.gz'" in error
    assert "Unpack them, then give --source the folder" in error


def test_glas_takes_every_label_as_gland(tmp_path: Path) -> None:
    top = "Warwick QU Dataset (Released 2016_07_08)"
    labels = np.zeros((24, 32), np.uint8)
    labels[2:5, 2:5], labels[10:15, 10:20], labels[20:22, 1:4] = 1, 2, 37
    files = {f"{top}/Grade.csv": b"name,grade"}
    for name in ("train_1", "train_2", "testA_1", "testB_1"):
        files[f"{top}/{name}.bmp"] = bmp(picture(1))
        files[f"{top}/{name}_anno.bmp"] = bmp(labels)
    archive = write_zip(tmp_path / "warwick_qu_dataset_released_2016_07_08.zip", files)
    folder = run("glas", tmp_path, "--source", archive)
    assert (folder / "images" / "testA_1.bmp").read_bytes() == bmp(picture(1))
    published = Split(("train_1", "train_2"), ("testA_1", "testB_1"))
    assert read_split(folder / "glas_train_test_names.json") == published
    assert json.loads((folder / "dataset.json").read_bytes())["splits"] == "names"
    given = Split(("testB_1", "train_1"), ("testA_1",))
    write_split(tmp_path / "given.json", given)
    arguments = ("--source", archive, "--splits", tmp_path / "given.json")
    other = run("glas", tmp_path / "other", *arguments)
    assert read_split(other / "glas_train_test_names.json") == given
    assert np.array_equal(read(folder / "masks" / "testA_1.png"), (labels > 0) * np.uint8(255))


@pytest.mark.parametrize("one_folder", [True, False])
def test_own_data_matched_by_stem(tmp_path: Path, one_folder: bool) -> None:
    images = {f"scans/case {i}.jpg": jpg(picture(i)) for i in range(5)}
    masks = {f"case {i}_mask.png": png(square(i, i)) for i in range(5)}
    write_folder(tmp_path / "images", images)
    write_folder(tmp_path / ("images" if one_folder else "masks"), masks | {"notes.txt": b"x"})
    where = tmp_path / ("images" if one_folder else "masks")
    folder = run(
        "my-set",
        tmp_path,
        "--images",
        tmp_path / "images",
        "--masks",
        where,
        "--mask-suffix",
        "_mask",
    )
    assert (folder / "images" / "case 3.jpg").read_bytes() == jpg(picture(3))
    assert np.array_equal(read(folder / "masks" / "case 3.png"), square(3, 3))
    split = read_split(folder / "my-set_train_test_names.json")
    assert (len(split.train), len(split.test)) == (4, 1)


@pytest.mark.parametrize("one_folder", [True, False])
def test_own_data_with_several_masks_of_an_image(
    tmp_path: Path, one_folder: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {f"c{i}.png": png(picture(i)) for i in range(3)}
    masks = {f"c{i}_mask.png": png(square(2, i)) for i in range(2)}
    masks |= {"c0_mask_1.png": png(square(15, 20)), "c2_mask_10.png": png(square(1, 1))}
    masks |= {"c9_mask_1.png": png(square(9, 9))}
    where = tmp_path / ("images" if one_folder else "masks")
    write_folder(tmp_path / "images", images)
    write_folder(where, masks)
    folder = run(
        *("mine", tmp_path, "--images", tmp_path / "images", "--masks", where),
        *("--mask-suffix", "_mask"),
    )
    assert {path.name for path in (folder / "masks").iterdir()} == set(images)
    assert np.array_equal(read(folder / "masks" / "c0.png"), square(2, 0) | square(15, 20))
    assert np.array_equal(read(folder / "masks" / "c1.png"), square(2, 1))
    assert np.array_equal(read(folder / "masks" / "c2.png"), square(1, 1))
    assert "1 masks have no image and were left out: 'c9_mask_1.png'" in capsys.readouterr().err


@pytest.mark.parametrize(("one_folder", "image_suffix"), [(True, "_0"), (False, "_0"), (False, "")])
def test_images_whose_names_look_like_those_of_masks(
    tmp_path: Path, one_folder: bool, image_suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / ("images" if one_folder else "masks")
    names = [f"p_{i}" for i in range(1, 13)]
    write_folder(tmp_path / "images", {f"{n}{image_suffix}.png": png(picture(1)) for n in names})
    write_folder(where, {f"{n}_1.png": png(square(i, 2)) for i, n in enumerate(names)})
    folder = run(
        *("mine", tmp_path, "--images", tmp_path / "images", "--masks", where),
        *("--image-suffix", image_suffix, "--mask-suffix", "_1"),
    )
    assert {path.stem for path in (folder / "masks").iterdir()} == set(names)
    assert np.array_equal(read(folder / "masks" / "p_11.png"), square(10, 2))
    assert "no image" not in capsys.readouterr().err


def test_own_data_problems_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {f"{i}.png": png(picture(i)) for i in range(4)} | {"sub/1.png": png(picture(9))}
    masks = {f"{i}.png": png(square(i, i)) for i in range(3)} | {"2.bmp": bmp(square(1, 1))}
    write_folder(tmp_path / "images", images)
    write_folder(tmp_path / "masks", masks)
    arguments = f"mine --images {tmp_path}/images --masks {tmp_path}/masks --root {tmp_path}/data"
    assert prepare(arguments.split()) == 2
    error = capsys.readouterr().err
    for expected in ("3 problem(s)", "1: two images", "2: two masks", "3: no mask for the image"):
        assert expected in error
    write_folder(tmp_path / "empty", {"a.txt": b""})
    assert prepare(arguments.replace("/images ", "/empty ").split()) == 2
    assert "no images named * in" in capsys.readouterr().err


@pytest.mark.parametrize("top", ["", "study/all/"])
def test_a_folder_for_each_patient_names_the_cases(
    tmp_path: Path, top: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files: dict[str, bytes] = {}
    for index in range(8):
        case = f"{top}P0{index // 2}/visit{index % 2}"
        files |= {f"{case}/image.png": png(picture(index))}
        files |= {f"{case}/mask.png": png(square(index, index)), f"{case}/report.txt": b""}
    both = write_zip(tmp_path / "both.zip", files)
    places = ["--images", both, "--masks", both]
    suffixes = ["--image-suffix", "image", "--mask-suffix", "mask"]
    folder = run("mine", tmp_path, *places, *suffixes)
    assert "cases are named by their folders: 'P00_visit0', 'P00_visit1'" in capsys.readouterr().out
    assert (folder / "images" / "P01_visit1.png").read_bytes() == png(picture(3))
    assert np.array_equal(read(folder / "masks" / "P01_visit1.png"), square(3, 3))
    assert len(list((folder / "images").iterdir())) == 8
    assert prepare(["mine", "--root", str(tmp_path / "other"), *map(str, places)]) == 2
    error = capsys.readouterr().err
    assert (
        "each of 8 folders holds files named 'image', 'mask': say which are images and which"
        in error
    )
    assert error.endswith("--image-suffix image --mask-suffix mask\n") and error.count("\n") == 1


@pytest.mark.parametrize(
    "called",
    ["P0{}/visit{}/image.bmp", "all/P0{}/visit{}/image", ".\\P0{}\\visit{}", "P0{}_visit{}"],
)
def test_tables_name_cases_by_folders_as_paths(tmp_path: Path, called: str) -> None:
    for patient, visit in np.ndindex(4, 2):
        write_folder(
            tmp_path / "study" / "all" / f"P0{patient}" / f"visit{visit}",
            {"image.bmp": bmp(picture(2 * patient + visit)), "mask.png": png(square(3, 3))},
        )
    cases = [called.format(patient, visit) for patient, visit in np.ndindex(4, 2)]
    groups, split = tmp_path / "groups.csv", tmp_path / "split.csv"
    groups.write_text("case,patient\n" + "".join(f"{c},P{i // 2}\n" for i, c in enumerate(cases)))
    parts = ["train"] * 6 + ["test"] * 2
    split.write_text("name,split\n" + "".join(map("{},{}\n".format, cases, parts)))
    places = ["--images", tmp_path / "study", "--masks", tmp_path / "study", "--groups", groups]
    arguments = [*places, "--image-suffix", "image", "--mask-suffix", "mask", "--splits", split]
    folder = run("mine", tmp_path, *arguments)
    names = [f"P0{patient}_visit{visit}" for patient, visit in np.ndindex(4, 2)]
    assert read_split(folder / "mine_train_test_names.json") == Split(
        tuple(names[:6]), tuple(names[6:])
    )
    of_patient = json.loads((folder / "groups.json").read_bytes())
    assert of_patient == {name: f"P{i // 2}" for i, name in enumerate(names)}
    run("mine", tmp_path, *arguments)  # again: it is complete


def test_a_path_in_a_table_is_not_another_case_of_its_last_name(tmp_path: Path) -> None:
    for index, patient in enumerate(("", "P1", "P2")):
        for kind, content in (("images", png(picture(index))), ("masks", png(square(3, 3)))):
            write_folder(tmp_path / kind / patient, {"a.png": content, "b.png": content})
    split = tmp_path / "split.csv"
    split.write_text("name,split\nP1/a.png,train\nb,train\nP2_b,test\n")
    folder = run(
        "mine",
        tmp_path,
        *("--images", tmp_path / "images", "--masks", tmp_path / "masks", "--splits", split),
    )
    assert read_split(folder / "mine_train_test_names.json") == Split(("P1_a", "b"), ("P2_b",))


def test_tables_of_other_paths_say_how_cases_by_folders_are_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(4):
        files = {"image.png": png(picture(index)), "mask.png": png(square(3, 3))}
        write_folder(tmp_path / "all" / f"P0{index}", files)
    table = tmp_path / "table.csv"
    places = f"--images {tmp_path}/all --masks {tmp_path}/all --root {tmp_path}/data"
    command = f"mine {places} --image-suffix image --mask-suffix mask".split()
    table.write_text("case,patient\n" + "".join(f"Q0{i}/image.png,P{i // 2}\n" for i in range(4)))
    assert prepare([*command, "--groups", str(table)]) == 2
    error = capsys.readouterr().err
    assert "'image' in 'P0' and in 'P1'" in error
    assert "Give each case one group; they are called 'P00', 'P01', 'P02' and 1 more, by" in error
    parts = ("train", "train", "train", "test")
    rows = (f"Q0{i}/image.png,{part}\n" for i, part in enumerate(parts))
    table.write_text("name,split\n" + "".join(rows))
    assert prepare([*command, "--splits", str(table)]) == 2
    assert "the source has 'P00', 'P01', 'P02' and 1 more" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["zip", "folder", "folder of masks"])
@pytest.mark.parametrize("parts", [[""], ["train/", "test/"]])
def test_folders_called_images_and_masks_tell_which_is_which(
    tmp_path: Path, parts: list[str], place: str
) -> None:
    files = {}
    for index in range(4):
        for at, part in enumerate(parts):
            files[f"set/{part}images/k{index}.png"] = png(picture(index + 4 * at))
            files[f"set/{part}masks/k{index}.png"] = png(square(index, 4 * at))
    images: Path = write_folder(tmp_path / "both", files)
    if place == "zip":
        images = write_zip(tmp_path / "both.zip", files)
    masks = images
    if place == "folder of masks" and parts == [""]:
        masks = images / "set" / "masks"
    folder = run("mine", tmp_path, "--images", images, "--masks", masks)
    for at, part in enumerate(parts):
        name = f"{part.rstrip('/')}_k2".lstrip("_")
        assert (folder / "images" / f"{name}.png").read_bytes() == png(picture(2 + 4 * at))
        assert np.array_equal(read(folder / "masks" / f"{name}.png"), square(2, 4 * at))
    assert len(list((folder / "images").iterdir())) == 4 * len(parts)


def divided(names: dict[str, str]) -> dict[str, bytes]:
    """Images and masks in the folders `names[case]/{images,masks}`."""
    files: dict[str, bytes] = {}
    for index, (name, part) in enumerate(names.items()):
        files[f"{part}/images/{name}.png"] = png(picture(index))
        files[f"{part}/masks/{name}.png"] = png(square(index, index))
    return files


@pytest.mark.parametrize(
    "called", ["train val test", "Training Validation Testing", "TRAIN valid test"]
)
@pytest.mark.parametrize("packed", [True, False])
def test_folders_of_a_divided_set_are_its_split(
    tmp_path: Path, called: str, packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val, test = called.split()
    files = divided({"a": train, "b": test, "c": val, "d": train, "e": test, "f": test})
    both = write_zip(tmp_path / "S.zip", files) if packed else write_folder(tmp_path / "S", files)
    arguments = ["--images", both, "--masks", both]
    folder = run("mine", tmp_path, *arguments)
    split_file = folder / "mine_train_test_names.json"
    assert read_split(split_file) == Split(("a", "d", "c"), ("b", "e", "f"), ("c",))
    assert (
        "split as the folders are called: 2 cases in train, 1 cases in val, 3 cases in test (those of val "
        "choose the checkpoint); --splits FILE gives another\n"
    ) in capsys.readouterr().out
    assert json.loads((folder / "dataset.json").read_bytes())["splits"] == "folders"
    run("mine", tmp_path, *arguments)
    given = Split(("b", "c"), ("a",))
    write_split(tmp_path / "given.json", given)
    other = run("mine", tmp_path / "other", *arguments, "--splits", tmp_path / "given.json")
    assert read_split(other / "mine_train_test_names.json") == given
    assert "as the folders" not in capsys.readouterr().out
    cohort = run("mine", tmp_path / "cohort", *arguments, "--test-only")
    assert read_split(cohort / "mine_train_test_names.json") == Split((), tuple("abcdef"))


def test_parts_whose_cases_have_the_same_names_are_a_split(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for part in ("train", "test"):
        files |= {f"images/{part}/{i}.png": png(picture(i)) for i in range(3)}
        files |= {f"masks/{part}/{i}.png": png(square(i, i)) for i in range(3)}
    write_folder(tmp_path, files)
    folder = run("mine", tmp_path, "--images", tmp_path / "images", "--masks", tmp_path / "masks")
    names = [tuple(f"{part}_{i}" for i in range(3)) for part in ("train", "test")]
    assert read_split(folder / "mine_train_test_names.json") == Split(*names)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"d": "train", "e": "val"},
            "folders called train, val look like a split, but there is no test",
        ),
        (
            {"d": "test", "e": "more"},
            "folders called train, test look like a split, but 1 of 5 cases lie in neither ('e')",
        ),
        (
            {"d": "test", "e": "test/train"},
            "folders called train, test look like a split, but 1 of 5 cases lie in neither ('e')",
        ),
        (
            {"a": "x", "b": "x", "c": "x", "d": "test", "e": "test"},
            "folders called test look like a split, but 3 of 5 cases lie elsewhere ('a', 'b', 'c')",
        ),
        ({"d": "training", "e": "train"}, ""),
    ],
)
def test_folders_that_make_no_split_are_told(
    tmp_path: Path, other: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "S", divided({"a": "train", "b": "train", "c": "train"} | other))
    folder = run("mine", tmp_path, "--images", tmp_path / "S", "--masks", tmp_path / "S")
    assert read_split(folder / "mine_train_test_names.json") == random_split("abcde")
    error = capsys.readouterr().err
    assert message in error and ("look like" in error) == bool(message)


def test_a_few_repeated_names_do_not_rename_all_cases(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "images", {"sub/3.png": png(picture(9))})
    write_folder(tmp_path / "masks", {"sub/3.png": png(square(9, 9))})
    assert prepare(own) == 2
    assert "1 problem(s):\n  3: two images, " in capsys.readouterr().err


def test_problems_are_shown_before_a_split_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "images", {f"{i}/scan.png": png(picture(i)) for i in range(3)})
    write_folder(tmp_path / "masks", {"scan.png": png(square(1, 1))})
    places = f"--images {tmp_path}/images --masks {tmp_path}/masks --root {tmp_path}/data"
    assert prepare(["mine", *places.split()]) == 2
    error = capsys.readouterr().err
    assert "1 problem(s):\n  scan: two images, " in error and "at least 2 cases" not in error


@pytest.mark.parametrize("place", ["folder", "zip", "two names of a folder"])
def test_an_image_is_not_its_own_mask(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{i}.png": png(picture(i)) for i in range(3)}
    files |= {f"{i}_mask.png": png(square(i, i)) for i in range(3)}
    images = masks = write_folder(tmp_path / "both", files)
    if place == "zip":
        images = masks = write_zip(tmp_path / "both.zip", files)
    elif place == "two names of a folder":
        masks = tmp_path / "other" / ".." / "both"
        (tmp_path / "other").mkdir()
    arguments = ["mine", "--images", images, "--masks", masks, "--root", tmp_path / "data"]
    assert prepare(list(map(str, arguments))) == 2
    error = capsys.readouterr().err
    assert "6 problem(s)" in error
    assert "0.png are the same file; give --mask-suffix" in error
    assert prepare([*map(str, arguments), "--mask-suffix", "_mask"]) == 0


@pytest.mark.parametrize("ending", ["_seg.png", "_seg_1.png"])
def test_a_forgotten_mask_suffix_is_one_line(
    own: list[str], tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "images", {f"1{i}.png": png(picture(i)) for i in range(10)})
    write_folder(tmp_path / "images", {f"{i}{ending}": png(square(i, 1)) for i in range(9)})
    write_folder(tmp_path / "images", {f"1{i}{ending}": png(square(i, 1)) for i in range(10)})
    own[own.index("--masks") + 1] = str(tmp_path / "images")
    assert prepare(own) == 2
    error = capsys.readouterr().err
    assert "39 problem(s): image and mask of" in error and error.count("\n") == 1
    assert "same file; give --mask-suffix _seg (19 of 39 names" in error
    assert prepare([*own, "--mask-suffix", "_seg", "--skip-unusable"]) == 0


@pytest.mark.parametrize("pack", [write_folder, write_zip])
def test_the_folder_of_an_nnunet_set_holds_images_and_masks(
    tmp_path: Path,
    pack: Callable[[Path, dict[str, bytes]], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = {"dataset.json": b"{}"}
    for index in range(5):
        files[f"imagesTr/us_{index:03}_0000.png"] = png(picture(index))
        files[f"labelsTr/us_{index:03}.png"] = png(square(index, index) // 255)
    files["labelsTr/us_009.png"] = png(square(9, 9) // 255)
    both = pack(tmp_path / "both.zip", files)
    places = ["--images", both, "--masks", both]
    assert prepare(["mine", "--root", str(tmp_path / "data"), *map(str, places)]) == 2
    assert "give --image-suffix _0000 (5 of 11 names" in capsys.readouterr().err
    run("mine", tmp_path, *places, "--image-suffix", "_0000")
    error = capsys.readouterr().err
    assert "1 masks have no image and were left out: 'labelsTr/us_009.png'" in error


def test_a_mask_in_a_format_that_is_not_read_is_named(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "masks" / "3.png").rename(tmp_path / "masks" / "3.gif")
    (tmp_path / "masks" / "4.txt").write_text("beside its mask")
    assert prepare(own) == 2
    error = capsys.readouterr().err
    assert "1 problem(s)" in error
    assert "3.gif is in a format that is not read; convert it to PNG" in error


def test_images_in_formats_that_are_not_read_are_named(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(4, 7):
        image = tmp_path / "images" / f"{index}.png"
        image.rename(image.with_suffix(".webp"))
    (tmp_path / "images" / "7.png").unlink()
    write_folder(tmp_path / "images", {"7.json": b"{}", "8.txt": b"", "readme.webp": b""})
    assert prepare(own) == 2
    error = capsys.readouterr().err
    assert "3 problem(s)" in error
    assert "6.webp is in a format that is not read; convert it to PNG" in error
    assert "1 masks have no image and were left out: '7.png'" in error
    assert prepare([*own, "--skip-unusable"]) == 0


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_folder_without_any_format_that_is_read_names_its_endings(
    own: list[str], tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, path in enumerate(sorted((tmp_path / part).iterdir())):
        path.rename(path.with_suffix((".WebP", ".nii.gz", "")[min(index // 6, 2)]))
    write_folder(tmp_path / part, {"notes.txt": b""})
    assert prepare(own) == 2
    error = capsys.readouterr().err
    assert (
        f"{tmp_path / part} holds no image that is read: its files end so: 6 in .webp, 4 in .nii.gz"
        in error
    )
    assert "read are .png, .jpg" in error and error.count("\n") == 1


def test_own_data_with_patients_is_split_by_patient(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", {f"{i}.png": png(picture(i)) for i in range(10)})
    write_folder(tmp_path / "masks", {f"{i}.png": png(square(i, i)) for i in range(10)})
    (tmp_path / "patients.csv").write_text(
        "case,patient\n" + "".join(f"{i},{i % 5}\n" for i in range(10))
    )
    splits = set()
    for seed in (1, 3):
        folder = run(
            *("mine", tmp_path / str(seed), "--seed", seed),
            *("--images", tmp_path / "images", "--masks", tmp_path / "masks"),
            *("--groups", tmp_path / "patients.csv"),
        )
        split = read_split(folder / "mine_train_test_names.json")
        assert len(split.test) == 2
        assert int(split.test[0]) % 5 == int(split.test[1]) % 5
        splits.add(split)
    assert len(splits) == 2


@pytest.mark.parametrize("patients", [5, 25])
@pytest.mark.parametrize("given", [True, False])
def test_the_groups_of_each_part_are_counted(
    tmp_path: Path, patients: int, given: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{i:02}" for i in range(50)]
    write_folder(tmp_path / "images", {f"{name}.png": png(picture(1)) for name in names})
    write_folder(tmp_path / "masks", {f"{name}.png": png(square(1, 1)) for name in names})
    rows = "".join(f"{name},p{i % patients}\n" for i, name in enumerate(names))
    (tmp_path / "patients.csv").write_text("case,patient\n" + rows)
    arguments = ["--images", tmp_path / "images", "--masks", tmp_path / "masks"]
    arguments += ["--groups", tmp_path / "patients.csv"]
    if given:
        test = [name for i, name in enumerate(names) if i % patients < patients // 5]
        write_split(tmp_path / "s.json", Split(tuple({*names} - {*test}), tuple(test)))
        arguments += ["--splits", tmp_path / "s.json"]
    run("mine", tmp_path, *arguments)
    printed = capsys.readouterr()
    line = f"groups: {patients * 4 // 5} in train, {patients // 5} in test"
    if given or patients == 25:
        assert f"{line}\n" in printed.out
    else:
        assert f"warning: {line}. Scores on under 5 groups (patients, lesions) tell" in printed.err


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    """Arguments that prepare ten own cases, `0` to `9`, into tmp_path/data."""
    write_folder(tmp_path / "images", {f"{i}.png": png(picture(i)) for i in range(10)})
    write_folder(tmp_path / "masks", {f"{i}.png": png(square(i, i)) for i in range(10)})
    places = f"--images {tmp_path}/images --masks {tmp_path}/masks --root {tmp_path}/data"
    return ["mine", *places.split()]


def test_links_are_followed_only_where_asked_for(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("images", "masks"):
        (tmp_path / part / "10.png").symlink_to("0.png")
    assert prepare(own) == 2
    assert "is a symbolic link" in capsys.readouterr().err
    assert prepare([*own, "--follow-links"]) == 0
    split = read_split(tmp_path / "data" / "mine" / "mine_train_test_names.json")
    assert "10" in split.train + split.test


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere refuse such names")
def test_names_that_are_not_unicode_are_taken_for_folders_and_told_for_cases(
    own: list[str], tmp_path: Path
) -> None:
    latin = os.fsdecode(b"caf\xe9")
    for part in ("images", "masks"):
        (tmp_path / part / latin).mkdir()
        (tmp_path / part / "9.png").rename(tmp_path / part / latin / "9.png")
        (tmp_path / part / "8.png").rename(tmp_path / part / f"{latin}.png")
    assert prepare(own) == 2
    assert prepare([*own, "--skip-unusable"]) == 0
    data = tmp_path / "data" / "mine"
    assert {path.stem for path in (data / "images").iterdir()} == {*"01234567", "9"}
    assert "caf\\udce9" in (data / "notes.txt").read_text(encoding="utf-8")


def test_names_of_groups_may_carry_spaces_and_extensions(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\n" + "".join(f" {i}.PNG , p{i % 5} \n" for i in range(9)))
    assert prepare([*own, "--groups", str(table)]) == 0
    groups = json.loads((tmp_path / "data" / "mine" / "groups.json").read_bytes())
    assert groups == {str(i): f"p{i % 5}" for i in range(9)}
    error = capsys.readouterr().err
    assert "patients.csv has no group for 1 of 10 cases" in error and "'9'" in error


def test_names_of_tables_may_be_those_of_dicom_files(own: list[str], tmp_path: Path) -> None:
    for part in ("images", "masks"):  # a case that is called as a file is
        (tmp_path / part / "9.png").rename(tmp_path / part / "9.dcm.png")
    names = [f"{i}{('.dcm', '.DCM', '.dicom')[i % 3]}" for i in range(9)] + ["9.dcm"]
    groups, split = tmp_path / "patients.csv", tmp_path / "split.csv"
    groups.write_text("case,patient\n" + "".join(f"all/{n},p{n[0]}\n" for n in names))
    parts = ["test"] * 2 + ["train"] * 8
    split.write_text("name,split\n" + "".join(map("{},{}\n".format, names, parts)))
    assert prepare([*own, "--groups", str(groups), "--splits", str(split)]) == 0
    folder = tmp_path / "data" / "mine"
    cases = [*map(str, range(9)), "9.dcm"]
    assert read_split(folder / "mine_train_test_names.json") == Split(
        tuple(cases[2:]), tuple(cases[:2])
    )
    assert json.loads((folder / "groups.json").read_bytes()) == {
        case: f"p{case[0]}" for case in cases
    }


def test_a_table_that_begins_with_the_names_is_read_by_its_first_two_columns(
    ham10000: Path,
) -> None:
    """As one made of the published table, whose own groups stay behind those of the user."""
    table = ham10000 / "patients.csv"
    rows = (f"ISIC_{24306 + i:07},P{i // 5},HAM_{i // 3}\n" for i in range(10))
    table.write_text("image_id,patient,lesion_id\n" + "".join(rows))
    folder = run("ham10000", ham10000, "--source", ham10000, "--groups", table)
    groups = json.loads((folder / "groups.json").read_bytes())
    assert set(groups.values()) == {"P0", "P1"}
    published = ("--groups", ham10000 / "HAM10000_metadata.csv")
    folder = run("ham10000", ham10000 / "again", "--source", ham10000, *published)
    assert len(set(json.loads((folder / "groups.json").read_bytes()).values())) == 4


def test_a_drawn_test_part_has_a_fifth_of_the_usable_cases(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where half of the images have no mask, as those of patients whose lesions were not outlined."""
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\n" + "".join(f"{i},P{i // 2}\n" for i in range(20)))
    write_folder(tmp_path / "images", {f"{i}.png": png(picture(i)) for i in range(10, 20)})
    for groups in ((), ("--groups", str(table))):
        for seed in range(8):
            own[-1] = str(tmp_path / f"{len(groups)}_{seed}")
            assert prepare([*own, "--skip-unusable", *groups, "--seed", str(seed)]) == 0
            split = read_split(Path(own[-1]) / "mine" / "mine_train_test_names.json")
            assert (len(split.train), len(split.test)) == (8, 2)
    assert "10 of 20 cases are unusable and were left out" in capsys.readouterr().err


def test_cases_without_a_patient_are_not_of_one(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\n0,A\n1,A\n2,\n3, \n")
    assert read_group_table(table, None) == {"0": "A", "1": "A"}


def test_groups_of_other_cases_are_refused(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\nscan_1,A\nscan_2.png,B\n")
    assert prepare([*own, "--groups", str(table)]) == 2
    error = capsys.readouterr().err
    assert "names none of the cases: it holds 'scan_1', 'scan_2', the cases are '0', '1'" in error
    assert not (tmp_path / "data" / "mine").exists()


@pytest.mark.parametrize("patients", [2, 10])
def test_swapped_columns_of_groups_are_told(
    own: list[str], tmp_path: Path, patients: int, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("patient,case\n" + "".join(f"p{i % patients},{i}.png\n" for i in range(10)))
    assert prepare([*own, "--groups", str(table)]) == 2
    error = capsys.readouterr().err
    assert ("in two groups" if patients == 2 else "names none of the cases") in error
    assert error.endswith(
        "Are the columns swapped? The first names the case, the second its group\n"
    )


def test_names_of_groups_may_be_paths(own: list[str], tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    folders = ("Bilder/", "C:\\Bilder\\", "/data/all/", "", "./")
    rows = (f"{folders[i % 5]}{i}.png,p{i // 2}\n" for i in range(10))
    table.write_text("case,patient\n" + "".join(rows))
    assert prepare([*own, "--groups", str(table)]) == 0
    groups = json.loads((tmp_path / "data" / "mine" / "groups.json").read_bytes())
    assert groups == {str(i): f"p{i // 2}" for i in range(10)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"Fall;Patient\n0;A\n1;B\n",
            "its lines have one column: separate them by commas (this one uses semicolons)",
        ),
        (
            b"Fall;Patient, pseudonym\n0;A\n1;B\n",
            "its lines have one column: separate them by commas (this one uses semicolons)",
        ),
        (
            b"Fall\tPatient\n0\tA\n",
            "its lines have one column: separate them by commas (this one uses tabs)",
        ),
        (b"Fall\n0\n1\n", "its lines have one column: separate them by commas\n"),
        ("Fall,Patient\n0,Müller\n".encode("cp1252"), "not UTF-8: save it as 'CSV UTF-8'\n"),
        ("Fall,Patient\n0,Müller\n".encode("utf-16"), "not UTF-8: save it as 'CSV UTF-8'\n"),
    ],
)
def test_a_table_that_excel_saved_otherwise_is_told_how_to_save_it(
    own: list[str],
    tmp_path: Path,
    content: bytes,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = tmp_path / "patients.csv"
    table.write_bytes(content)
    assert prepare([*own, "--groups", str(table)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith(f"error: {table}: ") and error.count("\n") == 1


def test_a_case_in_two_groups_is_refused(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "patients.csv"
    rows = "".join(f"{i},p{i}\n" for i in range(10))
    table.write_text(f"case,patient\n{rows}3.png,p3\n7,p8\n7,p9\n")
    assert prepare([*own, "--groups", str(table)]) == 2
    error = capsys.readouterr().err
    assert (
        "patients.csv names a case in two groups: '7' in 'p7' and in 'p8', '7' in 'p7' and in 'p9'"
        in error
    )
    assert "Give each case one group" in error
    assert not (tmp_path / "data" / "mine").exists()


def nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def test_names_of_a_mac_match_those_typed_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"Größe_{i}" for i in range(10)]
    pairs = list(zip(names[:5], names[5:], strict=True))
    write_folder(tmp_path / "images", {nfd(f"{n}.png"): png(picture(1)) for n in names})
    write_folder(tmp_path / "masks", {f"{n}_läsion.png": png(square(3, 3)) for n in names})
    rows = "".join(f"{n},Ä{i}\n{nfd(f'{m},Ä{i}')}\n" for i, (n, m) in enumerate(pairs))
    (tmp_path / "patients.csv").write_text(f"case,patient\n{rows}", encoding="utf-8")
    places = ["--images", tmp_path / "images", "--masks", tmp_path / "masks"]
    places += ["--mask-suffix", nfd("_läsion"), "--groups", tmp_path / "patients.csv"]
    folder = run("mine", tmp_path, *places)
    groups = json.loads((folder / "groups.json").read_bytes())
    assert groups == {name: f"Ä{i % 5}" for i, name in enumerate(names)}
    split = read_split(folder / "mine_train_test_names.json")
    assert not {groups[n] for n in split.train} & {groups[n] for n in split.test}
    for part in ("images", "masks"):
        assert {path.name for path in (folder / part).iterdir()} == {f"{n}.png" for n in names}
    write_split(
        tmp_path / "split.json",
        Split(tuple(map(nfd, names[:6])), tuple(names[6:]), tuple(map(nfd, names[4:6]))),
    )
    folder = run("other", tmp_path, *places, "--splits", tmp_path / "split.json")
    taken = read_split(folder / "other_train_test_names.json")
    assert taken == Split(tuple(names[:6]), tuple(names[6:]), tuple(names[4:6]))
    opened = open_data_set(folder / "other_train_test_names.json")
    assert len(opened.train) == 6 and len(opened.test) == 4
    write_split(tmp_path / "split.json", Split((names[0], names[1]), (nfd(names[0]),)))
    command = ["third", "--root", tmp_path / "data", *places, "--splits", tmp_path / "split.json"]
    assert prepare(list(map(str, command))) == 2
    error = capsys.readouterr().err
    assert f"NFC, 1 names are in both train and test: '{names[0]}'" in error


@pytest.mark.parametrize("part", ["images", "masks"])
def test_two_files_that_differ_in_normalisation_alone_are_refused(
    tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, pixels in (("images", picture(1)), ("masks", square(3, 3))):
        write_folder(tmp_path / kind, {f"{n}.png": png(pixels) for n in "äöü"})
    write_folder(tmp_path / part, {nfd("ä.png"): png(square(9, 9))})
    places = f"--images {tmp_path}/images --masks {tmp_path}/masks --root {tmp_path}/data"
    assert prepare(["mine", *places.split()]) == 2
    error = capsys.readouterr().err
    assert f"1 problem(s):\n  ä: two {part}, " in error
    assert "whose names differ in their Unicode form alone (NFC, NFD)" in error


def test_a_set_that_was_prepared_with_decomposed_names_still_opens(tmp_path: Path) -> None:
    files = {
        f"{part}/{nfd(n)}.png": png(square(3, 3)) for part in ("images", "masks") for n in "äö"
    }
    folder = write_folder(tmp_path / "mine", files)
    write_split(folder / "mine_train_test_names.json", Split((nfd("ä"),), (nfd("ö"),)))
    opened = open_data_set(folder / "mine_train_test_names.json")
    assert [case.name for case in opened.train + opened.test] == [nfd("ä"), nfd("ö")]
    assert check_data_set(folder)["readable"] == 2


def test_a_split_that_cuts_patients_apart_is_noted(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\n" + "".join(f"{i},{i // 2}\n" for i in range(10)))
    write_split(tmp_path / "split.json", Split(tuple("02456"), tuple("13789")))
    assert prepare([*own, "--groups", str(table), "--splits", f"{tmp_path}/split.json"]) == 0
    expected = "3 groups (patients, lesions) lie in both train and test, with 3 of 5 test cases"
    error = capsys.readouterr().err
    assert expected in error and "python -m datasets.prepare mine --group-split" in error
    assert expected in (tmp_path / "data" / "mine" / "notes.txt").read_text()
    assert prepare(["mine", "--group-split", "--root", f"{tmp_path}/data"]) == 0
    (tmp_path / "data" / "mine").rename(tmp_path / "before")
    assert prepare([*own, "--groups", str(table)]) == 0
    assert "lie in both" not in capsys.readouterr().err


def test_patients_cut_between_train_and_val_are_noted(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\n" + "".join(f"{i},{i // 2}\n" for i in range(10)))
    write_split(tmp_path / "split.json", Split(tuple("0245613"), tuple("789"), tuple("613")))
    assert prepare([*own, "--groups", str(table), "--splits", f"{tmp_path}/split.json"]) == 0
    error = capsys.readouterr().err
    assert "1 groups (patients, lesions) lie in both train and test, with 1 of 3 test" in error
    expected = "2 groups (patients, lesions) lie in both train and val, with 2 of 3 val cases"
    assert expected in error
    assert expected in (tmp_path / "data" / "mine" / "notes.txt").read_text()
    assert prepare(["mine", "--group-split", "--root", f"{tmp_path}/data"]) == 0
    assert "the new split names no val: val_fraction applies" in capsys.readouterr().out
    assert not read_split(tmp_path / "data/mine/mine_grouped_train_test_names.json").val


def test_unusable_cases_are_left_out_where_asked_for(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "masks" / "3.png").unlink()
    (tmp_path / "images" / "5.png").write_bytes(b"junk")
    assert prepare(own) == 2
    assert "--skip-unusable leaves them out" in capsys.readouterr().err
    assert prepare([*own, "--skip-unusable"]) == 0
    folder = tmp_path / "data" / "mine"
    notes = (folder / "notes.txt").read_text()
    assert "left out: 3: no mask for the image" in notes
    assert "left out: 5: " in notes and "5.png: not a PNG" in notes
    assert f"2 of 10 cases are unusable and were left out, listed in {folder}/notes.txt" in (
        capsys.readouterr().err
    )
    manifest = json.loads((folder / "dataset.json").read_bytes())
    assert (manifest["train"] + manifest["test"], manifest["unusable"]) == (8, 2)
    opened = open_data_set(folder / "mine_train_test_names.json")
    assert len(opened.train + opened.test) == 8


def test_a_part_without_any_usable_case_is_an_error(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path / "split.json", Split(("1", "2"), ("3", "absent")))
    (tmp_path / "masks" / "3.png").unlink()
    assert prepare([*own, "--skip-unusable", "--splits", f"{tmp_path}/split.json"]) == 2
    error = capsys.readouterr().err
    assert "no test case is usable" in error and "3: no mask" in error
    assert "--skip-unusable leaves" not in error
    write_split(tmp_path / "split.json", Split(("3", "absent", "4"), ("5",), ("4",)))
    assert prepare([*own, "--skip-unusable", "--splits", f"{tmp_path}/split.json"]) == 2
    assert "no train case is usable" in capsys.readouterr().err


@pytest.mark.parametrize("plain", [True, False])
def test_split_files_may_hold_plain_lists_and_names_of_files(
    own: list[str], tmp_path: Path, plain: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("images", "masks"):  # a case that is called as a file is
        (tmp_path / part / "9.png").rename(tmp_path / part / "9.jpg.png")
    parts = {"train": ["0.png", "1.PNG", "2", "9.jpg"], "test": ["3.jpg", "4"], "val": ["5.png"]}
    data = parts if plain else {part: {"name_list": names} for part, names in parts.items()}
    file = tmp_path / "split.json"
    file.write_text(json.dumps(data))
    assert prepare([*own, "--splits", str(file)]) == 0
    split = read_split(tmp_path / "data" / "mine" / "mine_train_test_names.json")
    assert split == Split(("0", "1", "2", "9.jpg", "5"), ("3", "4"), ("5",))
    assert prepare([*own, "--splits", str(file)]) == 0
    file.write_text(json.dumps({"train": ["0.png", "1"], "test": ["0.jpg"]}))
    (tmp_path / "data" / "mine").rename(tmp_path / "before")
    capsys.readouterr()
    assert prepare([*own, "--splits", str(file)]) == 2
    assert "1 names are in both train and test: '0' (image extensions are left" in (
        capsys.readouterr().err
    )
    file.write_text(json.dumps({"train": ["0", "1"], "test": []}))
    assert prepare([*own, "--splits", str(file)]) == 2
    assert "name some cases of 'train' there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("split.csv", "name,split\n0,train\n1.png,Training\nall/2.png,test\n3,val\n"),
        ("split.csv", "name, split\nall\\0, train\nall\\1 , train \n2, test\n3, val\n"),
        ("split.csv", "\ufeffsplit,name\ntrain,0\ntrain,1\ntest,2\nval,3\n"),
        ("split.csv", "name,split\n0,train\n,\n1,train\n2,test\n3,val\n , \n,\n"),
        ("split.csv", "\ufeffCase;Part\r\n0;train\r\n1;train\r\n2;testing\r\n3;validation\r\n"),
        (
            "split.tsv",
            "patient\tSplit\tname\na\ttrain\t0\na\ttrain\t1\nb\ttest\t2\nc\tvalid\t3\n\n",
        ),
    ],
)
def test_a_split_may_be_a_table(own: list[str], tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    arguments = [*own, "--splits", str(tmp_path / name)]
    assert prepare(arguments) == 0
    split = read_split(tmp_path / "data" / "mine" / "mine_train_test_names.json")
    assert split == Split(("0", "1", "3"), ("2",), ("3",))
    assert prepare(arguments) == 0


def test_a_split_with_other_cases_to_choose_by_is_another(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ["0"], "val": ["1"], "test": ["2"]}))
    assert prepare([*own, "--splits", str(file)]) == 0
    assert prepare([*own, "--splits", str(file)]) == 0
    file.write_text(json.dumps({"train": ["0", "1"], "test": ["2"]}))
    assert prepare([*own, "--splits", str(file)]) == 2
    assert "was prepared otherwise: with other splits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,split\n0,train\n1,dev\n", "(train, val or test), got 'dev' for '1'"),
        ("name,split\n0,train\n1\n", "expected a CSV with the columns name and split"),
        ("name\n0\n1\n", "expected a CSV with the columns name and split"),
        ("0,train\n1,test\n", "the first line, '0,train', is a case; write name,split above it"),
        ("", "expected a CSV with the columns name and split"),
        ("name,split\n0,train\n1,train\n", "the list of names is empty"),
        ("name,split\n0,train\n0,test\n", "1 names are in both train and test: '0'"),
    ],
)
def test_a_table_that_is_no_split_is_named(
    own: list[str], tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "split.csv").write_text(content)
    assert prepare([*own, "--splits", str(tmp_path / "split.csv")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/split.csv: " in error and message in error and error.count("\n") == 1


def test_the_folds_of_nnunet_are_told_how_to_become_a_split(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = [{"train": ["0", "1"], "val": ["2"]}, {"train": ["0", "2"], "val": ["1"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    assert prepare([*own, "--splits", str(tmp_path / "splits_final.json")]) == 2
    error = capsys.readouterr().err
    assert (
        "a list of 2 folds with 'train' and 'val', as nnU-Net's splits_final.json, expected"
        in error
    )
    command = error.partition(", by ")[2].strip()
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert prepare([*own, "--splits", str(tmp_path / "split.json")]) == 0
    split = read_split(tmp_path / "data" / "mine" / "mine_train_test_names.json")
    assert split == Split(("0", "1"), ("2",))


def test_a_cohort_for_testing_only(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare([*own, "--test-only"]) == 0
    assert prepare([*own, "--test-only"]) == 0
    folder = tmp_path / "data" / "mine"
    split = read_split(folder / "mine_train_test_names.json")
    assert split == Split((), tuple("0123456789"))
    assert prepare(["mine", "--check", "--root", f"{tmp_path}/data"]) == 0
    assert "mine: 0 train, 10 test" in capsys.readouterr().out
    folder.rename(tmp_path / "before")
    assert prepare(own) == 0
    assert prepare([*own, "--test-only"]) == 2
    assert "splits drawn, asked for test only" in capsys.readouterr().err
    assert prepare([*own, "--test-only", "--splits", "x.json"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("given", [False, True])
def test_ham10000_without_metadata_warns_that_lesions_may_leak(
    ham10000: Path, given: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (ham10000 / "HAM10000_metadata.csv").unlink()
    write_split(ham10000 / "split.json", Split(("ISIC_0024306",), ("ISIC_0024307",)))
    split = ["--splits", ham10000 / "split.json"] if given else []
    run("ham10000", ham10000, "--source", ham10000, *split)
    error = capsys.readouterr().err
    assert "images of one lesion_id may lie in both train and test" in error
    assert "HAM10000_metadata.csv" in error


@pytest.mark.parametrize("other", ["groups", "images", "masks", "root of images"])
def test_a_complete_own_set_is_not_passed_off_as_another(
    own: list[str], tmp_path: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\n" + "".join(f"{i},{i % 5}\n" for i in range(10)))
    own += ["--groups", str(table)]
    assert prepare(own) == 0
    assert prepare(own) == 0
    assert "is complete" in capsys.readouterr().out
    if other == "groups":
        table.write_text("case,patient\n" + "".join(f"{i},{i % 2}\n" for i in range(10)))
    elif other == "root of images":
        own[own.index("--images") + 1] = str(tmp_path)
    else:
        own[own.index(f"--{other}") + 1] = str(tmp_path / "elsewhere")
    assert prepare(own) == 2
    error = capsys.readouterr().err
    assert "was prepared otherwise" in error
    assert ("with other groups" if other == "groups" else "sources images, masks") in error


@pytest.mark.parametrize("option", ["--image-suffix", "--mask-suffix"])
def test_a_complete_own_set_knows_its_suffixes(
    own: list[str], tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(own) == 0
    assert prepare([*own, option, "_2"]) == 2
    difference = f"{option[2:].replace('-', '_')} '', asked for _2"
    assert difference in capsys.readouterr().err
    assert prepare(["mine", "--root", str(tmp_path / "data")]) == 0


def test_a_complete_own_set_without_groups_is_not_one_with(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(own) == 0
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\n0,A\n1,A\n")
    assert prepare([*own, "--groups", str(table)]) == 2
    assert "with no groups" in capsys.readouterr().err


def test_ham10000_knows_its_groups_again(
    ham10000: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = ham10000 / "HAM10000_metadata.csv"
    for _ in range(2):
        run("ham10000", ham10000, "--source", ham10000, "--groups", table)
    table.write_text(table.read_text().replace("HAM_0", "HAM_9"))
    command = f"ham10000 --root {ham10000}/data --source {ham10000} --groups {table}"
    assert prepare(command.split()) == 2
    assert "was prepared otherwise: with other groups" in capsys.readouterr().err


def test_ham10000_knows_its_sources_again(
    ham10000: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("ham10000", ham10000, "--source", ham10000)
    archives = sorted(ham10000.glob("HAM*"), reverse=True)
    run("ham10000", ham10000, "--source", *archives)
    for path in archives:
        path.unlink()
    run("ham10000", ham10000, "--source", *archives)
    command = f"ham10000 --root {folder.parent} --source {ham10000}/other.zip"
    assert prepare(command.split()) == 2
    assert "asked for other.zip" in capsys.readouterr().err


def test_masks_without_an_image_are_counted(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("3", "7"):
        (tmp_path / "images" / f"{name}.png").unlink()
    assert prepare(own) == 0
    error = capsys.readouterr().err
    assert "2 masks have no image and were left out: '3.png', '7.png'" in error


@pytest.mark.parametrize(
    ("name_of", "advice"),
    [
        ("{}_mask.png", "Give --mask-suffix _mask\n"),
        ("{}_mask_1.png", "Give --mask-suffix _mask\n"),
        ("mask{}.png", "Give --mask-prefix mask\n"),
        (
            "mask_of_{}_.png",
            "the options that fit: --image-prefix, --image-suffix, --mask-prefix, --mask-suffix\n",
        ),
    ],
)
def test_masks_of_another_name_are_told_by_their_affixes(
    own: list[str],
    tmp_path: Path,
    name_of: str,
    advice: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in (tmp_path / "masks").iterdir():
        path.rename(path.with_name(name_of.format(path.stem)))
    assert prepare(own) == 2
    error = capsys.readouterr().err
    assert "has a mask of its name: expected one for '0'" in error and error.endswith(advice)
    assert error.count("\n") == 1


@pytest.mark.parametrize("one_folder", [True, False])
@pytest.mark.parametrize(
    ("of_image", "of_mask", "options"),
    [
        ("{}", "mask_{}", "--mask-prefix mask_"),
        ("img_{}", "mask_{}", "--image-prefix img_ --mask-prefix mask_"),
        ("{}_scan", "{}_seg", "--image-suffix _scan --mask-suffix _seg"),
        ("{}_scan", "seg {}", "--image-suffix _scan --mask-prefix seg "),
    ],
)
def test_names_with_affixes_are_matched(
    tmp_path: Path,
    one_folder: bool,
    of_image: str,
    of_mask: str,
    options: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [f"P{i // 5:02}_{i}" for i in range(12)]
    where = tmp_path / ("images" if one_folder else "masks")
    write_folder(tmp_path / "images", {f"{of_image.format(n)}.png": png(picture(1)) for n in names})
    write_folder(
        where, {f"{of_mask.format(n)}.png": png(square(i, 2)) for i, n in enumerate(names)}
    )
    places = ["--images", str(tmp_path / "images"), "--masks", str(where)]
    assert prepare(["mine", *places, "--root", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    if not one_folder and "seg " not in of_mask:
        assert error.endswith(f"Give {options}\n")
    elif "seg " not in of_mask and of_image != "{}":
        assert f"are the same file; give {options}\n" in error
    elif of_image == "{}":
        assert f"give {options} (12 of 24 names are another one with this beginning)" in error
    arguments = [word for pair in re.findall(r"(--\S+) (\S+ ?$|\S+)", options) for word in pair]
    folder = run("mine", tmp_path, *places, *arguments)
    assert {path.stem for path in (folder / "masks").iterdir()} == set(names)
    assert np.array_equal(read(folder / "masks" / "P02_11.png"), square(11, 2))
    manifest = json.loads((folder / "dataset.json").read_bytes())
    assert manifest["mask_prefix"] == of_mask.partition("{")[0]
    run("mine", tmp_path, *places, *arguments)
    assert prepare(["mine", *places, "--root", str(tmp_path / "data"), "--mask-prefix", "x"]) == 2
    assert "mask_prefix" in capsys.readouterr().err


def test_names_that_differ_in_capitals_are_told(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(10):
        (tmp_path / "images" / f"{index}.png").rename(tmp_path / "images" / f"P{index}.PNG")
        (tmp_path / "masks" / f"{index}.png").rename(tmp_path / "masks" / f"p{index}_mask.png")
    assert prepare([*own, "--mask-suffix", "_mask"]) == 2
    assert (
        f"10 cases, 'P0', 'P1', 'P2' and 7 more, the first: no mask for the image {tmp_path}/images: P0.PNG, but "
        f"{tmp_path}/masks: p0_mask.png differs in capital letters alone; give both the same\n"
    ) in capsys.readouterr().err


@pytest.mark.parametrize("image_suffix", ["", "_scan"])
def test_a_mask_suffix_that_no_mask_has_is_to_be_left_out(
    own: list[str], tmp_path: Path, image_suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images" / "7.png").unlink()  # its mask has no image
    for path in list((tmp_path / "images").iterdir()):
        path.rename(path.with_name(f"{path.stem}{image_suffix}.png"))
    suffixes = ["--image-suffix", image_suffix, "--mask-suffix"]
    assert prepare([*own, *suffixes, "_mask"]) == 2
    error = capsys.readouterr().err
    assert "none of the 9 images has a mask whose name ends in '_mask'" in error
    assert error.endswith(
        "9 have a mask of their own name, like '0.png'. Leave out --mask-suffix\n"
    )
    assert error.count("\n") == 1
    assert prepare([*own, *suffixes[:2]]) == 0


def test_copies_of_the_images_beside_masks_of_another_suffix_are_no_masks(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in list((tmp_path / "masks").iterdir()):
        path.rename(path.with_name(f"{path.stem}_seg.png"))
    write_folder(tmp_path / "masks", {f"{i}.png": png(picture(i)) for i in range(10)})
    assert prepare([*own, "--mask-suffix", "_mask"]) == 2
    assert capsys.readouterr().err.endswith("Give --mask-suffix _seg\n")


def test_masks_without_the_suffix_are_counted_too(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "masks").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    others = {"3_mask_left.png": png(square(9, 9)), "3.png": png(picture(3)), "notes.txt": b""}
    write_folder(tmp_path / "masks", others)
    assert prepare([*own, "--mask-suffix", "_mask"]) == 0
    error = capsys.readouterr().err
    assert "1 masks have no image and were left out: '3_mask_left.png'" in error


def test_floating_point_masks_and_images_are_refused_by_kind(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, content = cv2.imencode(".tiff", np.zeros((24, 32), np.float32))
    (tmp_path / "images" / "3.png").write_bytes(content.tobytes())
    (tmp_path / "masks" / "4.png").write_bytes(content.tobytes())
    assert prepare(own) == 2
    error = capsys.readouterr().err
    assert "3.png: holds float32 pixels; save it" in error
    assert error.count("without a sign, or give --window LOW,HIGH\n") == 1
    assert "4.png: the mask holds float32 values, expected whole numbers; save it as PNG" in error


@pytest.mark.parametrize("count", [3, 5, 60])
def test_a_problem_of_many_cases_is_one_line(
    tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"case {i:02}" for i in range(count)]
    write_folder(tmp_path / "images", {f"{name}.png": png(picture(1)) for name in names})
    masks = {f"{name}.png": png(regions(76, 149)) for name in names}
    masks["case 01.png"] = png(regions(76, 149, 226))
    write_folder(tmp_path / "masks", masks)
    places = f"--images {tmp_path}/images --masks {tmp_path}/masks --root {tmp_path}/data"
    assert prepare(["mine", *places.split()]) == 2
    error = capsys.readouterr().err
    lines = error.splitlines()
    assert lines[0] == f"error: mine is not prepared, {count} problem(s):"
    reason = (
        f"{tmp_path}/masks: case 00.png: the mask holds the values 0, 76, 149, expected 0 and one"
    )
    if count == 3:
        assert lines[1].startswith(f"  case 00: {reason}")
        assert lines[2].startswith("  case 02: ")
    else:
        more = f" and {count - 4} more"
        cases = f"{count - 1} cases, 'case 00', 'case 02', 'case 03'{more}, the first: "
        assert lines[1].startswith(f"  {cases}{reason}")
    assert "  case 01: " in error and "0, 76, 149, 226" in error
    assert len(lines) == (5 if count == 3 else 4)


def test_a_limit_of_preparation_holds_for_training_and_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.image_files.decoding.MAX_MEGAPIXELS", 1)
    monkeypatch.setattr("datasets.preparation.steps.MAX_MEGAPIXELS", 1)
    files = {f"{i}.png": png(square(i, i, 200, 1050, 1000)) for i in range(3)}
    write_folder(tmp_path / "images", files)
    write_folder(tmp_path / "masks", files)
    places = ["--images", tmp_path / "images", "--masks", tmp_path / "masks"]
    folder = run("mine", tmp_path, *places, "--limit", "megapixels=2")
    assert json.loads((folder / "dataset.json").read_bytes())["max_megapixels"] == 2
    opened = open_data_set(folder / "mine_train_test_names.json")
    assert read_case(opened.train[0])[0].shape == (1050, 1000, 3)
    assert check_data_set(folder)["readable"] == 3
    other = write_folder(tmp_path / "plain", {"images/0.png": files["0.png"]})
    with pytest.raises(ImageError, match="over the limit of 1 megapixels"):
        read_pixels(other / "images" / "0.png", cv2.IMREAD_COLOR)


def test_advice_on_problems_names_a_split_file_only_where_there_is_one(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images" / "3.png").write_bytes(b"junk")
    assert prepare(own) == 2
    error = capsys.readouterr().err
    assert "remove them there" in error and "split file" not in error
    write_split(tmp_path / "split.json", Split(("1", "2"), ("3",)))
    assert prepare([*own, "--splits", str(tmp_path / "split.json")]) == 2
    assert "take them out of the split file" in capsys.readouterr().err


def test_masks_with_other_values_are_cut_at_half_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft = cv2.GaussianBlur(square(5, 5, side=12), (5, 5), 0)
    deep = np.where(square(2, 2) > 0, 65535, 0).astype(np.uint16)
    write_folder(tmp_path / "images", {f"{i}.png": png(picture(i)) for i in range(3)})
    masks = {"0.png": png(soft), "1.png": png(deep), "2.png": png(square(1, 1) // 255)}
    write_folder(tmp_path / "masks", masks)
    folder = run("mine", tmp_path, "--images", tmp_path / "images", "--masks", tmp_path / "masks")
    error = capsys.readouterr().err
    assert f"warning: 1 odd files, listed in {folder / 'notes.txt'}:\n" in error
    assert "0.png: values from 0 to 255, expected 0/1 or 0/255; cut at half" in error
    assert np.array_equal(read(folder / "masks" / "0.png"), (soft >= 128) * np.uint8(255))
    assert np.array_equal(read(folder / "masks" / "1.png"), square(2, 2))
    assert np.array_equal(read(folder / "masks" / "2.png"), square(1, 1))


def test_jpeg_masks_are_one_note_and_no_reason_for_any_label(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(10):
        (tmp_path / "masks" / f"{index}.png").unlink()
        write_folder(tmp_path / "masks", {f"{index}.jpg": jpg(square(index, index, 9))})
    assert prepare(own) == 0
    error = capsys.readouterr().err
    assert "warning: 10 masks are JPEG, whose edges are blurred; cut at half of its range" in error
    assert "odd files" not in error and "--any-label" not in error
    folder = tmp_path / "data" / "mine"
    assert "4.jpg: JPEG, whose" in (folder / "notes.txt").read_text()
    assert np.array_equal(read(folder / "masks" / "4.png"), square(4, 4, 9))
    folder.rename(tmp_path / "cut at half")
    assert prepare([*own, "--any-label"]) == 0
    assert "warning: 10 masks are JPEG, which keeps values only nearly, so --any-label" in (
        capsys.readouterr().err
    )


def test_masks_in_one_colour_need_no_note(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    red = np.zeros((24, 32, 3), np.uint8)
    red[..., 2] = square(3, 3)
    palette = Image.fromarray(square(4, 4) // 255).convert("P")
    palette.putpalette([0, 0, 0, 0, 128, 0])
    palette.save(tmp_path / "masks" / "4.png")
    write_folder(tmp_path / "masks", {"3.png": png(red), "5.png": png(square(5, 5) // 255 * 2)})
    assert prepare(own) == 0
    error = capsys.readouterr().err
    assert "warning: 1 odd files" in error and "5.png: values from 0 to 2" in error
    for index in (3, 4, 5):
        written = read(tmp_path / "data" / "mine" / "masks" / f"{index}.png")
        assert np.array_equal(written, square(index, index))


def test_a_case_that_one_colour_covers_is_no_empty_mask(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(10):
        red = np.zeros((24, 32, 3), np.uint8)
        red[..., 2] = 255 if index == 3 else square(index, index)
        write_folder(tmp_path / "masks", {f"{index}.png": png(red)})
    assert prepare(own) == 2
    error = capsys.readouterr().err
    assert "3.png: the mask holds the value 76 everywhere, expected 0/1 or 0/255" in error
    assert prepare([*own, "--any-label"]) == 0
    assert read(tmp_path / "data" / "mine" / "masks" / "3.png").min() == 255


def test_images_that_a_tag_turns_upright_are_noted(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upright = square(1, 1, 6, height=32, width=24)
    files = {
        "images/3.png": turned(picture(3), 3, ".png"),  # the mask fits before and after
        "images/5.png": turned(picture(5), 6),
        "masks/5.png": png(upright),  # fits the upright image alone
        "images/6.png": turned(picture(6), 6),
        "masks/6.png": turned(square(1, 1), 6, ".png"),
        "images/7.png": turned(picture(7), 1),
    }
    write_folder(tmp_path, files)
    assert prepare(own) == 0
    error = capsys.readouterr().err
    assert "1 odd files" in error
    assert "3.png: turned upright by its orientation tag; was the mask drawn on the" in error
    folder = tmp_path / "data" / "mine"
    assert np.array_equal(read(folder / "masks" / "6.png"), np.rot90(square(1, 1), -1))
    # prepared masks are without their tags, so a check asks only where nothing was prepared
    check = ["mine", "--check", "--root", f"{tmp_path}/data"]
    assert prepare(check) == 0
    assert "was the mask drawn" not in capsys.readouterr().out
    for part in ("images", "masks"):
        (tmp_path / part / "6.png").replace(folder / part / "6.png")
    (folder / "dataset.json").unlink()
    assert prepare(check) == 0
    assert "was the mask drawn on the upright image?: 1 (3)" in capsys.readouterr().out


def test_a_mask_of_the_image_as_stored_is_told_from_one_of_another(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images" / "4.png").write_bytes(turned(picture(4), 6, ".png"))
    assert prepare(own) == 2
    hint = "it fits the image as stored, which an orientation tag turns upright"
    error = capsys.readouterr().err
    assert f"4.png has 32 x 24 px, the image 24 x 32; {hint}" in error
    case = Case("4", tmp_path / "images" / "4.png", tmp_path / "masks" / "4.png")
    with pytest.raises(CaseError, match=hint):
        read_case(case)


@pytest.mark.parametrize("tag", range(1, 9))
def test_a_mask_may_fit_the_image_before_any_tag_turns_it(tag: int) -> None:
    upright = read_picture(turned(picture(4), tag, ".png")).pixels.shape
    assert may_fit_as_stored(tag, (upright[0], upright[1]), 1, (24, 32)) == (tag > 1)
    assert not may_fit_as_stored(tag, (upright[0], upright[1]), 1, (32, 24))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_the_orientation_tag_is_found(suffix: str, tag: int) -> None:
    content = turned(picture(1), tag, suffix)
    assert orientation(content) == tag
    height, width = decode(content, cv2.IMREAD_COLOR).shape[:2]
    assert (height, width) == ((32, 24) if tag >= 5 else (24, 32))
    for end in range(len(content) // 8):
        orientation(content[:end])


def test_a_background_of_one_is_no_foreground(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As MATLAB numbers classes: 1 is the background, and all there is without a lesion."""
    masks = [(square(i, i) > 0) + np.uint8(1) for i in range(10)]
    write_folder(tmp_path / "masks", {f"{i}.png": png(mask) for i, mask in enumerate(masks)})
    for index in (2, 5):
        write_folder(tmp_path / "masks", {f"{index}.png": png(np.ones_like(masks[index]))})
    for resumed in (False, True):
        assert prepare(own) == 2
        error = capsys.readouterr().err
        assert ("resuming" in error) == resumed
        assert (
            "2 masks hold the value 1 everywhere, 8 others values from 1 to 2, expected 0" in error
        )
        assert "give --label 2, or save the masks as 0 and 255" in error
    assert prepare([*own, "--label", "2"]) == 0
    written = [read(tmp_path / "data" / "mine" / "masks" / f"{i}.png") for i in range(10)]
    assert [bool(mask.any()) for mask in written] == [i not in (2, 5) for i in range(10)]
    assert np.array_equal(written[1] > 0, masks[1] == 2)
    assert "masks: 2 of 10 empty; median" in capsys.readouterr().out


def test_full_masks_are_counted_and_named(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, value in ((2, 1), (5, 255)):
        write_folder(tmp_path / "masks", {f"{index}.png": png(np.full((24, 32), value, np.uint8))})
    assert prepare(own) == 0
    printed = capsys.readouterr()
    assert "masks: 0 of 10 empty, 2 full; median foreground 4.7 % of the image\n" in printed.out
    assert "warning: 2 odd files" in printed.err
    assert "2.png: all of it is foreground\n" in printed.err


@pytest.mark.parametrize(
    ("empty", "inverted", "line"),
    [
        (0, False, "masks: 0 of 10 empty; median foreground 4.7 % of the image\n"),
        (5, False, "masks: 5 of 10 empty; median foreground 2.3 % of the image\n"),
        (
            6,
            False,
            "warning: masks: 6 of 10 empty; median foreground 0.0 % of the image. Are these",
        ),
        (
            0,
            True,
            "warning: masks: 0 of 10 empty; median foreground 95.3 % of the image. Are the masks inv",
        ),
    ],
)
def test_how_much_of_the_images_is_foreground_is_said(
    own: list[str],
    tmp_path: Path,
    empty: int,
    inverted: bool,
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for index in range(10):
        mask = square(index, index) if index >= empty else square(0, 0, 0)
        write_folder(tmp_path / "masks", {f"{index}.png": png(~mask if inverted else mask)})
    assert prepare(own) == 0
    printed = capsys.readouterr()
    assert line in (printed.err if line.startswith("warning") else printed.out)
    assert ("masks:" in printed.err) == line.startswith("warning")


def regions(*values: int, kind: type = np.uint8) -> np.ndarray:
    """A mask with one square of 6 px for each value."""
    mask: np.ndarray = np.zeros((24, 32), kind)
    for index, value in enumerate(values):
        mask[2:8, 2 + 7 * index : 8 + 7 * index] = value
    return mask


@pytest.mark.parametrize(
    ("mask", "values"),
    [
        (regions(1, 2), "0, 1, 2"),
        (regions(1, 2, 3), "0, 1, 2, 3"),
        (regions(1, 2, 3, kind=np.uint16), "0, 1, 2, 3"),
        (regions(128, 255), "0, 128, 255"),
        (regions(40, 80, 120, 160), "0, 40, 80, 120, 160"),
        (cv2.merge([regions(0, 255), regions(0, 0), regions(255, 0)]), "0, 29, 76"),  # blue, red
    ],
)
def test_classes_are_refused_until_it_is_said_which_are_foreground(
    own: list[str],
    tmp_path: Path,
    mask: np.ndarray,
    values: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "masks" / "3.png").write_bytes(png(mask))
    assert prepare(own) == 2
    error = capsys.readouterr().err
    least, label = values.split(", ")[1], values.rpartition(" ")[2]
    assert f"3.png: the mask holds the values {values}, expected 0 and one other; " in error
    assert "--any-label (all above 0) or --label N (only these values), for example" in error
    assert error.count(f"for example --label {least}\n") == 1
    folder = tmp_path / "data" / "mine" / "masks" / "3.png"
    assert prepare([*own, "--label", label]) == 0
    chosen = read(folder) > 0
    assert chosen.any() and chosen.sum() == 36 and (mask[chosen] == mask.max()).any()
    (tmp_path / "data" / "mine").rename(tmp_path / "before")
    assert prepare([*own, "--any-label"]) == 0
    assert np.array_equal(read(folder) > 0, mask.reshape(24, 32, -1).max(axis=2) > 0)


@pytest.mark.parametrize("label", [1, 2, 3])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_small_label_beside_ignored_pixels_is_no_background(
    own: list[str],
    tmp_path: Path,
    label: int,
    kind: type,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ignored = np.iinfo(kind).max
    mask = regions(label, kind=kind)
    mask[1, 1:10] = mask[8, 1:10] = ignored  # a border around the lesion, as VOC draws it
    (tmp_path / "masks" / "3.png").write_bytes(png(mask))
    assert prepare(own) == 2
    assert (
        f"3.png: the mask holds the values 0, {label}, {ignored}, expected 0 and one other; of objects or "
        "classes, say which are foreground: --any-label (all above 0) or --label N (only these values), for "
        f"example --label {label}, if {ignored} marks what is to be ignored\n"
    ) in capsys.readouterr().err
    assert prepare([*own, "--label", str(label)]) == 0
    written = read(tmp_path / "data" / "mine" / "masks" / "3.png")
    assert np.array_equal(written > 0, mask == label)


@pytest.mark.parametrize("quality", [60, 90, 99])
def test_png_made_of_jpeg_is_not_taken_for_classes(
    own: list[str], tmp_path: Path, quality: int
) -> None:
    disc = cv2.circle(np.zeros((96, 128), np.uint8), (60, 50), 31, 255, -1)
    content = cv2.imencode(".jpg", disc, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    mask = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE)
    (tmp_path / "masks" / "3.png").write_bytes(png(mask))
    assert prepare(own) == 0
    written = read(tmp_path / "data" / "mine" / "masks" / "3.png")
    assert np.array_equal(written > 0, disc > 0)


def test_labels_that_are_foreground_are_recorded(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = {f"{i}.png": png(regions(*range(1, 1 + i % 4))) for i in range(10)}
    write_folder(tmp_path / "masks", masks)
    assert prepare([*own, "--label", "2,3"]) == 0
    folder = tmp_path / "data" / "mine"
    for index in range(10):
        kept = regions(*range(1, 1 + index % 4)) >= 2
        assert np.array_equal(read(folder / "masks" / f"{index}.png") > 0, kept)
    assert json.loads((folder / "dataset.json").read_bytes())["label"] == [2, 3]
    assert prepare([*own, "--label", "3,2"]) == 0
    capsys.readouterr()
    assert prepare([*own, "--label", "1"]) == 2
    assert "label 2, 3, asked for 1" in capsys.readouterr().err
    assert prepare(own) == 2
    assert "label 2, 3, asked for ''" in capsys.readouterr().err
    for wrong in ("a", "1;2", "-1", "", "70000"):
        assert prepare([*own, f"--label={wrong}"]) == 2
        assert "argument --label: expected values of the masks" in capsys.readouterr().err
    assert prepare([*own, "--label", "1", "--any-label"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["255,0,0", "0", "1,0", "2,2"])
def test_a_colour_is_no_list_of_labels(
    own: list[str], wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare([*own, "--label", wrong]) == 2
    error = capsys.readouterr().err
    assert f"different values above 0, which is background, as in 1,2; got '{wrong}'" in error
    assert "a colour is named by its grey value, as in 76 for red of 255,0,0" in error


def test_a_label_that_no_mask_holds_is_refused(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare([*own, "--label", "1"]) == 2
    assert (
        "mine is not prepared: label 1 occurs in no mask; they hold 0, 255. Give --label with"
    ) in capsys.readouterr().err
    assert not (tmp_path / "data" / "mine").exists()
    assert prepare([*own, "--label", "1"]) == 2  # resumes, with all masks written
    assert "they hold 0, 255" in capsys.readouterr().err
    assert prepare([*own, "--label", "1,2"]) == 2
    assert "labels 1, 2 occur in no mask" in capsys.readouterr().err
    assert prepare([*own, "--label", "1,255"]) == 0
    assert "warning: label 1 occurs in no mask; they hold 0, 255\n" in capsys.readouterr().err
    assert read(tmp_path / "data" / "mine" / "masks" / "3.png").any()


def coloured(*colours: tuple[int, int, int], kind: type = np.uint8) -> np.ndarray:
    """A mask with one square of 6 px for each colour of red, green and blue, as OpenCV writes it."""
    return cv2.merge(
        [regions(*values, kind=kind) for values in reversed(list(zip(*colours, strict=True)))]
    )


@pytest.mark.parametrize("ending", ["png", "palette", "bmp", "tif", "alpha"])
@pytest.mark.parametrize("label", [[], ["--label", "76"]])
def test_colours_of_one_grey_value_are_refused(
    own: list[str],
    tmp_path: Path,
    ending: str,
    label: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    mask = coloured((255, 0, 0), (0, 130, 0))
    assert np.unique(cv2.cvtColor(mask, cv2.COLOR_BGR2GRAY)).tolist() == [0, 76]
    if ending == "alpha":
        mask = np.dstack([mask, np.full((24, 32), 255, np.uint8)])
    file = io.BytesIO()
    if ending == "palette":
        Image.fromarray(mask[..., ::-1]).quantize(4).save(file, "PNG")
    else:
        suffix = {"alpha": "png"}.get(ending, ending)
        file.write(cv2.imencode(f".{suffix}", mask)[1].tobytes())
    (tmp_path / "masks" / "3.png").write_bytes(file.getvalue())
    assert prepare([*own, *label]) == 2
    assert (
        "3.png: the mask draws with several colours, (255, 0, 0), (0, 130, 0) in red, green and blue, that are "
        "all the grey value 76, expected one of its own for each; save the classes as grey values, or"
    ) in capsys.readouterr().err
    assert prepare([*own, "--any-label"]) == 0
    written = read(tmp_path / "data" / "mine" / "masks" / "3.png")
    assert np.array_equal(written > 0, mask[..., :3].any(axis=2))


@pytest.mark.parametrize("label", [1, 2])
def test_dark_colours_of_one_value_are_refused(
    own: list[str], tmp_path: Path, label: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "masks" / "3.png").write_bytes(png(coloured((label, 0, 0), (0, 0, label))))
    assert prepare(own) == 2
    assert f"(0, 0, {label})" in capsys.readouterr().err


def test_smoothed_colours_and_noise_are_no_further_colours(own: list[str], tmp_path: Path) -> None:
    red = np.dstack([np.zeros((24, 32, 2), np.uint8), smoothed(255)])
    noisy = np.dstack([square(3, 3)] * 3)
    noisy[12:20, 12:20, 0] = 3  # as colours of a JPEG leave it
    write_folder(tmp_path / "masks", {"3.png": png(red), "4.png": png(noisy)})
    assert prepare(own) == 0
    for name, mask in (("3", smoothed(255) > 127), ("4", square(3, 3) > 0)):
        written = read(tmp_path / "data" / "mine" / "masks" / f"{name}.png")
        assert np.array_equal(written > 0, mask)


def smoothed(high: int, scale: int = 1) -> np.ndarray:
    """A disc whose edge is smoothed, enlarged without smoothing."""
    disc = cv2.circle(np.zeros((96, 128), np.uint8), (60, 50), 31, 255, -1)
    grey = cv2.resize(disc, (32, 24), interpolation=cv2.INTER_AREA).astype(float) * high / 255
    return np.kron(np.round(grey).astype(np.uint8), np.ones((scale, scale), np.uint8))


@pytest.mark.parametrize("mask", [smoothed(255), smoothed(254), smoothed(76), smoothed(255, 4)])
def test_smoothed_edges_are_not_taken_for_classes(
    own: list[str], tmp_path: Path, mask: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "masks" / "3.png").write_bytes(png(mask))
    assert prepare(own) == 0
    assert "3.png: values from 0 to" in capsys.readouterr().err
    written = read(tmp_path / "data" / "mine" / "masks" / "3.png")
    assert np.array_equal(written > 0, mask >= mask.max() / 2)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_any_label_is_foreground_where_asked_for(
    own: list[str], tmp_path: Path, kind: type, capsys: pytest.CaptureFixture[str]
) -> None:
    labels: np.ndarray = np.zeros((24, 32), kind)
    labels[2:5, 2:5], labels[10:15, 10:20] = 1, 200
    (tmp_path / "masks" / "3.png").write_bytes(png(labels))
    folder = tmp_path / "data" / "mine"
    assert prepare(own) == 0
    assert "classes: prepare with --any-label" in capsys.readouterr().err
    assert prepare([*own, "--any-label"]) == 2
    assert "any_label False, asked for True" in capsys.readouterr().err
    folder.rename(tmp_path / "cut at half")
    assert prepare([*own, "--any-label"]) == 0
    assert not (folder / "notes.txt").exists()
    assert json.loads((folder / "dataset.json").read_bytes())["any_label"] is True
    opened = open_data_set(folder / "mine_train_test_names.json")
    (case,) = (case for case in opened.train + opened.test if case.name == "3")
    assert np.array_equal(read_case(case)[1], labels > 0)
    assert not check_data_set(folder)["odd_mask_values"]
    assert prepare(own) == 2


def test_12_bits_in_16_are_noted_by_preparation_and_check(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = np.random.default_rng(0).integers(0, 4096, (24, 32)).astype(np.uint16)
    deep[0, 0] = 4095
    (tmp_path / "images" / "3.png").write_bytes(png(deep))
    (tmp_path / "images" / "4.png").write_bytes(png(deep * np.uint16(16)))
    (tmp_path / "images" / "5.png").write_bytes(png(np.zeros((24, 32), np.uint8)))
    assert prepare(own) == 0
    error = capsys.readouterr().err
    assert "warning: 1 odd files" in error
    assert "3.png: 16 bits, but no value over 4095: nearly black to the model; spread" in error
    assert prepare(["mine", "--check", "--root", str(tmp_path / "data")]) == 0
    assert "16 bits, nearly black to the model: 1 (3)" in capsys.readouterr().out


def dicom(pixels: np.ndarray, **elements: object) -> bytes:
    """A grey DICOM file of 16 bits."""
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = pydicom.uid.UltrasoundImageStorage
    data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelData = pixels.tobytes()
    for key, value in elements.items():
        setattr(data, key, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize("window", ["-100,3000", "auto"])
def test_images_of_more_than_8_bits_are_windowed_as_prediction_does(
    own: list[str], tmp_path: Path, window: str, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = np.random.default_rng(0).integers(0, 4096, (24, 32)).astype(np.uint16)
    files = {"1.dcm": dicom(deep, RescaleSlope=1, RescaleIntercept=-500), "2.png": png(deep)}
    files |= {
        "3.png": png(picture(3)),
        "4.jpg": jpg(picture(4)),
        "5.tif": turned(picture(5), 6, ".tif"),
    }
    values = deep.astype(np.float32)
    files |= {"6.tif": cv2.imencode(".tiff", values)[1].tobytes()}
    files |= {"7.tif": cv2.imencode(".tiff", (values - 1000).astype(np.int16))[1].tobytes()}
    for name in files:
        (tmp_path / "images" / f"{name[0]}.png").unlink()
    write_folder(tmp_path / "images", files)
    write_folder(tmp_path / "masks", {"5.png": png(square(1, 1, 6, height=32, width=24))})
    assert prepare([*own, "--window", window]) == 0
    folder = tmp_path / "data" / "mine"
    assert {path.suffix for path in (folder / "images").iterdir()} == {".png"}
    opened = open_data_set(folder / "mine_train_test_names.json")
    prepared = {case.name: read_case(case)[0] for case in opened.train + opened.test}
    for name, content in files.items():
        expected = read_picture(content, window=parse_window(window)).pixels
        assert np.array_equal(prepared[name[0]], expected), name
    assert prepare([*own, "--window", window]) == 0
    assert prepare([*own, "--window", "0,7"]) == 2
    assert f"window {window}, asked for 0,7" in capsys.readouterr().err
    assert prepare([*own, "--window", "7,0"]) == 2
    assert "a window is `auto` or LOW,HIGH with LOW below HIGH" in capsys.readouterr().err


def test_a_run_with_another_window_does_not_resume(
    own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = png(np.arange(768, dtype=np.uint16).reshape(24, 32))
    (tmp_path / "images" / "3.png").write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prepare([*own, "--window", "0,100"]) == 130
    assert prepare([*own, "--window", "0,700"]) == 0
    image = read(tmp_path / "data" / "mine" / "images" / "3.png")
    assert np.array_equal(image, read_picture(content, window=(0, 700)).pixels[..., 0])


def test_dicom_is_windowed_as_its_file_says(own: list[str], tmp_path: Path) -> None:
    deep = np.arange(768, dtype=np.uint16).reshape(24, 32)
    content = dicom(deep, WindowCenter=400, WindowWidth=300)
    (tmp_path / "images" / "3.png").unlink()
    write_folder(tmp_path / "images", {"3.dcm": content, "4.dcm": b"beside its image"})
    assert prepare(own) == 0
    image = read(tmp_path / "data" / "mine" / "images" / "3.png")
    assert np.array_equal(image, read_picture(content).pixels[..., 0])
    assert (tmp_path / "data" / "mine" / "images" / "4.png").read_bytes() == png(picture(4))


def test_a_dicom_file_that_cannot_be_read_is_named(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "3456":
        (tmp_path / "images" / f"{name}.png").unlink()
    deep = np.zeros((1200, 1000), np.uint16)
    files = {"3.dcm": b"junk", "4.dcm": dicom(deep), "5.dcm": dicom(deep[:24, :32])[:-9]}
    write_folder(tmp_path / "images", files | {"6.tif": b""})
    assert prepare([*own, "--limit", "megapixels=1"]) == 2
    error = capsys.readouterr().err
    assert "3.dcm: has no DICM marker" in error
    assert "1000 x 1200 px is over the limit of 1 megapixels (--limit megapixels=N)" in error
    assert "5.dcm: the DICOM pixels cannot be decoded" in error and "4 problem(s)" in error


@pytest.mark.parametrize(
    ("arguments", "name", "domain"),
    [
        ("phantom", "phantom", "a"),
        ("phantom --domain b", "phantom-b", "b"),
        ("phantom-b", "phantom-b", "b"),
    ],
)
def test_phantom(
    tmp_path: Path, arguments: str, name: str, domain: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*arguments.split(), *f"--cases 5 --seed 7 --root {tmp_path}".split()]
    assert prepare(command) == 0
    case = phantom_case(3, seed=7, domain=domain)
    folder = tmp_path / name
    assert np.array_equal(read(folder / "images" / f"{case.name}.png"), case.image)
    assert np.array_equal(read(folder / "masks" / f"{case.name}.png"), case.mask)
    split = read_split(folder / f"{name}_train_test_names.json")
    assert (len(split.train), len(split.test)) == (4, 1)
    assert (
        split == random_split(split.train + split.test, 7) != random_split(split.train + split.test)
    )
    assert prepare(command) == 0
    assert prepare([*arguments.split(), "--cases", "6", "--root", str(tmp_path)]) == 2
    assert "cases 5, asked for 6" in capsys.readouterr().err


def test_a_phantom_whose_name_and_domain_differ_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--cases", "5", "--root", str(tmp_path)]
    assert prepare(["phantom-b", "--domain", "a", *options]) == 2
    expected = "phantom-b is the phantom of --domain b, but --domain a was given: leave it out, or prepare phantom"
    assert expected in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    assert prepare(["phantom-b", "--domain", "b", *options]) == 0
    assert (tmp_path / "phantom-b").is_dir()


def test_real_ham10000_masks_and_lesions(shared: Path, tmp_path: Path) -> None:
    """A hundred cases of the real archives, across both image parts."""
    published = read_split(shared / "splits" / "ham10000_train_test_names.pkl")
    split = Split(train=published.train[:80], test=published.test[:20])
    write_split(tmp_path / "split.json", split)
    data = shared / "data"
    folder = run("ham10000", tmp_path, "--source", data, "--splits", tmp_path / "split.json")
    assert len(list((folder / "images").glob("*.jpg"))) == 100
    mask = read(folder / "masks" / f"{split.test[0]}_segmentation.png")
    assert set(np.unique(mask)) == {0, 255}
    assert len(json.loads((folder / "groups.json").read_bytes())) == 100
