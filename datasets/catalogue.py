"""What each data set is: where it comes from, under what terms, and how its files are named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from datasets.image_files.windowing import Window
from utils.data_set_names import canonical_name
from utils.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
DICOM_SUFFIXES = (".dcm", ".dicom")


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    Where it is prepared, a case `<name>` has the image `images/<name>.*` and the mask
    `masks/<name><mask_suffix>.*`, with any of `IMAGE_SUFFIXES`.
    """

    name: str
    title: str
    source: str = ""
    licence: str = ""
    archives: tuple[str, ...] = ()
    """File names at `source`; none where there is nothing to download."""
    also_called: tuple[str, ...] = ()
    """Other names that the archives have elsewhere."""
    train: int | None = None
    """Cases in the published split, None where none is published."""
    test: int | None = None
    mask_suffix: str = ""
    image_pattern: str = ""
    """Regular expression, case ignored: how the paths of images in the archives end. Its groups,
    joined by `_`, are the name of the case."""
    mask_pattern: str = ""
    """The same for masks; several masks of one case are united."""
    any_label: bool = False
    """Whether masks number their objects, so that any value above 0 is foreground."""
    labels: tuple[int, ...] = ()
    """The values of masks that are foreground, where they number classes."""
    window: Window = None
    """Which values of images of more than 8 bits become black and white; all images are PNG then."""
    test_prefix: str = ""
    """How the names of the published test cases begin, where names tell them."""
    normal_prefix: str = ""
    """How the names of cases without a lesion begin; these are left out unless asked for."""
    group_columns: tuple[str, str] | None = None
    """Columns of the metadata CSV with the image's name and what several images may show (a lesion)."""

    def mask_stem(self, case: str) -> str:
        return case + self.mask_suffix


CATALOGUE: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="bus",
            title="BUS (UDIAT Dataset B), breast ultrasound",
            source="http://www2.docm.mmu.ac.uk/STAFF/M.Yap/dataset.php",
            licence="research only, on request under a signed agreement",
            archives=("BUS.zip",),
            train=132,
            test=31,
            image_pattern=r"original/(\w+)\.png",
            mask_pattern=r"GT/(\w+)\.png",
        ),
        DatasetSpec(
            name="busi",
            title="BUSI, breast ultrasound images",
            source="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
            licence="none stated; described in doi:10.1016/j.dib.2019.104863 (CC BY 4.0)",
            archives=("Dataset_BUSI.zip",),
            also_called=("Dataset_BUSI_with_GT.zip",),
            train=517,
            test=130,
            image_pattern=r"(benign|malignant|normal) \((\d+)\)\.png",
            mask_pattern=r"(benign|malignant|normal) \((\d+)\)_mask(?:_\d+)?\.png",
            normal_prefix="normal_",
        ),
        DatasetSpec(
            name="glas",
            title="GlaS, glands in colon histology",
            source="https://warwick.ac.uk/fac/cross_fac/tia/data/glascontest/",
            licence="research only, no commercial use",
            archives=("warwick_qu_dataset_released_2016_07_08.zip",),
            train=85,
            test=80,
            image_pattern=r"((?:train|testA|testB)_\d+)\.bmp",
            mask_pattern=r"((?:train|testA|testB)_\d+)_anno\.bmp",
            test_prefix="test",
            any_label=True,
        ),
        DatasetSpec(
            name="ham10000",
            title="HAM10000, dermatoscopic images of skin lesions",
            source="https://doi.org/10.7910/DVN/DBW86T",
            licence="CC BY-NC 4.0",
            archives=(
                "HAM10000_images_part_1.zip",
                "HAM10000_images_part_2.zip",
                "HAM10000_segmentations_lesion_tschandl.zip",
                "HAM10000_metadata.csv",
            ),
            train=8015,
            test=2000,
            mask_suffix="_segmentation",
            image_pattern=r"(ISIC_\d+)\.jpg",
            mask_pattern=r"(ISIC_\d+)_segmentation\.png",
            group_columns=("image_id", "lesion_id"),
        ),
        DatasetSpec(
            name="kvasir-instrument",
            title="Kvasir-Instrument, tools in gastrointestinal endoscopy",
            source="https://datasets.simula.no/kvasir-instrument/",
            licence="research and education only, no commercial use",
            archives=("kvasir-instrument.zip",),
            train=472,
            test=118,
            image_pattern=r"images/(\w+)\.jpg",
            mask_pattern=r"masks/(\w+)\.png",
        ),
        DatasetSpec(
            name="phantom",
            title="ultrasound-like phantom, generated here",
            source="python -m datasets.prepare phantom",
            licence="same as this repository",
            train=320,
            test=80,
        ),
    )
}


def spec_for(name: str) -> DatasetSpec:
    """The catalogue's entry; for any other data set, one with `<name>.png` for image and mask.

    `<name>_grouped`, as the split by groups is called, is another split of the same files.
    Raises UserError where `name` is not fit for the name of a folder.
    """
    published = CATALOGUE.get(canonical_name(name.removesuffix("_grouped")))
    if published is not None:
        return published
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise UserError(
            f"{name!r} is not a valid name for a data set: use letters, digits, '-' and '_', 64 at most, "
            "and begin with a letter or digit"
        )
    return DatasetSpec(name=name, title=f"{name}, own data")


def find_case(spec: DatasetSpec, folder: Path, case: str) -> tuple[Path | None, Path | None]:
    """Image and mask of a case, None for what is absent.

    A mask may also be named as the case is; the published code expects HAM10000's so.
    """
    image = find_file(folder / "images", case)
    mask = find_file(folder / "masks", spec.mask_stem(case)) or find_file(folder / "masks", case)
    return image, mask


def find_file(folder: Path, stem: str) -> Path | None:
    """`folder/stem` with any image extension, in lower, upper or title case; None if absent."""
    for extension in IMAGE_SUFFIXES:
        for form in (extension, extension.upper(), "." + extension[1:].title()):
            path = folder / (stem + form)
            if path.is_file():
                return path
    return None
