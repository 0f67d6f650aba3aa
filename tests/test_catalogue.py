from __future__ import annotations

from pathlib import Path

import pytest

from datasets.catalogue import CATALOGUE, find_file, spec_for
from datasets.splits import read_split
from utils.errors import UserError


def test_catalogue_holds_the_published_sets() -> None:
    assert set(CATALOGUE) == {"bus", "busi", "glas", "ham10000", "kvasir-instrument", "phantom"}
    for name, spec in CATALOGUE.items():
        assert spec.name == name
        assert spec.title and spec.source and spec.licence


@pytest.mark.parametrize("name", ["bus", "busi", "glas", "ham10000", "kvasir-instrument"])
def test_counts_are_those_of_the_published_splits(shared: Path, name: str) -> None:
    split = read_split(shared / "splits" / f"{name.split('-')[0]}_train_test_names.pkl")
    assert (CATALOGUE[name].train, CATALOGUE[name].test) == (len(split.train), len(split.test))


def test_file_names_of_a_case() -> None:
    spec = spec_for("ham10000")
    assert spec.mask_stem("ISIC_1") == "ISIC_1_segmentation"
    assert spec_for("ham10000_grouped") is spec
    own = spec_for("my-set_2")
    assert (own.mask_stem("x"), own.train) == ("x", None)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 65, "-x", "a\n"])
def test_names_that_are_no_folder_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not a valid name for a data set"):
        spec_for(name)


def test_find_file_accepts_any_image_extension_in_any_case(tmp_path: Path) -> None:
    for file in ("a.png", "b.JPG", "c.Tif", "d.jpeg", "e.txt", "f.segmentation.BMP"):
        (tmp_path / file).touch()
    (tmp_path / "g.png").mkdir()
    assert find_file(tmp_path, "a") == tmp_path / "a.png"
    assert find_file(tmp_path, "b") == tmp_path / "b.JPG"
    assert find_file(tmp_path, "c") == tmp_path / "c.Tif"
    assert find_file(tmp_path, "d") == tmp_path / "d.jpeg"
    assert find_file(tmp_path, "f.segmentation") == tmp_path / "f.segmentation.BMP"
    assert find_file(tmp_path, "e") is None
    assert find_file(tmp_path, "g") is None
