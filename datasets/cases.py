"""Cases on disk: which files belong to a split, and reading them as arrays of one size."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from datasets.catalogue import CATALOGUE, DatasetSpec, find_case, spec_for
from datasets.image_files.decoding import read_pixels
from datasets.image_files.headers import ImageError
from datasets.image_files.masks import (
    AS_STORED_HINT,
    aspect_ratio_differs,
    files_may_fit_as_stored,
    read_binary_mask,
)
from datasets.prepared import prepared_name, prepared_split_file
from datasets.splits import read_split
from utils.data_set_names import SPLIT_FILE_ENDING, canonical_name, data_set_name, names_of
from utils.errors import UserError, listed
from utils.files import REPOSITORY

log = logging.getLogger("wavegms")

MAX_LISTED_PROBLEMS = 50
_warned_masks: set[Path] = set()


class CaseError(UserError):
    """One case that cannot be used, with the file's name and the reason."""


@dataclass(frozen=True)
class Case:
    """The file of an image and that of its mask."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class DataSet:
    """The train and test cases of one data set."""

    name: str
    folder: Path
    split_file: Path
    train: tuple[Case, ...]
    test: tuple[Case, ...]
    val: frozenset[str] = frozenset()
    """Names of the cases of train that the split holds out to choose the checkpoint; most have none."""


def find_split_file(path: Path) -> Path:
    """The split file that `path` means: itself, or that of the prepared data set of the same name.

    Published configs name `./Dataset/BUSI/busi_train_test_names.pkl`; prepared data lies in
    `datasets/busi/` and has a JSON. File and folder may have any of the data set's names (see
    `names_of`). A folder within `datasets/` keeps its place there: `datasets/pretraining/phantom` is
    another set than `datasets/phantom`. Raises UserError that lists where it looked.
    """
    candidates = _split_file_candidates(path)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    name = path.stem.removesuffix(SPLIT_FILE_ENDING)
    canonical, folder = canonical_name(name), path.parent
    looked = "\n  ".join(dict.fromkeys(str(candidate) for candidate in candidates))
    elsewhere = folder.name == canonical and folder.parent not in _roots()
    raise UserError(
        f"no split file for the data set {name!r}. Looked for:\n  {looked}\n"
        f"Prepare it: python -m datasets.prepare {canonical} --help"
        + (f"; --root {folder.parent} puts it where it was looked for first" if elsewhere else "")
    )


def _split_file_candidates(path: Path) -> list[Path]:
    """Where the split file that `path` means may lie, `path` itself first."""
    name = path.stem.removesuffix(SPLIT_FILE_ENDING)
    names = names_of(name) if path.stem.endswith(SPLIT_FILE_ENDING) else []
    files = [each + SPLIT_FILE_ENDING for each in names] or [path.stem]
    roots, above = _roots(), path.absolute().parent.parent
    within = [above.relative_to(r) for r in map(Path.absolute, roots) if above.is_relative_to(r)]
    place = within[0] if within else Path()  # of the set's folder within `datasets/`
    folders = [path.parent, *(root / place / each for root in roots for each in names or [name])]
    return [
        path,
        *(folder / (file + e) for folder in folders for file in files for e in (".json", ".pkl")),
    ]


def _roots() -> tuple[Path, Path]:
    """Folders of prepared data sets: in the working directory, and in the repository."""
    return Path("datasets"), REPOSITORY / "datasets"


def own_split_file(folder: Path) -> Path:
    """The split file in the folder of a data set, prepared here or laid out as published.

    It is named as the folder is, or is the only one there apart from splits by groups. UserError
    otherwise.
    """
    split_files = sorted(
        path
        for path in folder.glob(f"*{SPLIT_FILE_ENDING}.*")
        if path.suffix in (".json", ".pkl")
        and not path.stem.endswith(f"_grouped{SPLIT_FILE_ENDING}")
    )
    named = [path for path in split_files if data_set_name(path) == canonical_name(folder.name)]
    if named or len(split_files) == 1:
        return (named or split_files)[0]  # sorted, so the JSON before the pickle
    expected = f"{folder.name}{SPLIT_FILE_ENDING}.json or .pkl"
    if split_files:
        names = ", ".join(path.name for path in split_files)
        raise UserError(f"{folder}: which split is it? Found {names}, expected one, or {expected}")
    raise UserError(
        f"{folder}: there is no data set here, expected {expected} beside images/ and masks/; prepare it "
        f"with python -m datasets.prepare {folder.name}"
    )


def spec_of(split_file: Path) -> DatasetSpec:
    """How the cases beside a split file are named: as in the published data set that the folder was prepared
    from, whatever the split file is called, else as in the one that it is called by.
    """
    return CATALOGUE.get(prepared_name(split_file.parent)) or spec_for(data_set_name(split_file))


def open_data_set(pickle_file_path: Path) -> DataSet:
    """Find every image and mask that the split file names.

    Raises UserError with all missing files together.
    """
    split_file = find_split_file(pickle_file_path)
    if split_file != pickle_file_path:
        log.info("%s is not there; taking %s", pickle_file_path, split_file)
    split = read_split(split_file)
    name, folder = data_set_name(split_file), split_file.parent
    spec = spec_of(split_file)
    problems: list[str] = []

    def cases_named(names: Sequence[str]) -> tuple[Case, ...]:
        cases = []
        for stem in names:
            image, mask = find_case(spec, folder, stem)
            if image is None:
                problems.append(f"{stem}: no image {folder / 'images' / stem}.*")
            if mask is None:
                problems.append(f"{stem}: no mask {folder / 'masks' / spec.mask_stem(stem)}.*")
            if image is not None and mask is not None:
                cases.append(Case(stem, image, mask))
        return tuple(cases)

    train, test = cases_named(split.train), cases_named(split.test)
    data_set = DataSet(name, folder, split_file, train, test, frozenset(split.val))
    raise_problems(problems, f"data set {name!r} in {folder}")
    return data_set


def open_prepared(name: str) -> DataSet:
    """`open_data_set` of a prepared data set by its name, or of a split file by its path."""
    if Path(name).is_file():
        return open_data_set(Path(name))
    return open_data_set(prepared_split_file(Path("datasets") / name))


def raise_problems(problems: Sequence[str], where: str) -> None:
    """Raise one UserError that lists the problems, if there are any."""
    if not problems:
        return
    raise UserError(
        f"{len(problems)} problem(s) in {where}:\n  "
        + listed(problems, MAX_LISTED_PROBLEMS, separator="\n  ")
        + "\nFix or replace these files, or remove the names from the split file"
    )


def read_image(path: Path) -> np.ndarray:
    """RGB image, uint8, (H, W, 3), with EXIF rotation applied; CaseError if it cannot be read."""
    try:
        return cv2.cvtColor(read_pixels(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    except ImageError as error:
        raise CaseError(f"{path}: {error}") from None


def read_mask(path: Path) -> np.ndarray:
    """Mask as uint8 of 0 and 1, (H, W).

    The rule is that of `image_files.masks.binary_mask`. Values that it does not expect give a warning
    that names the file: once, and from the main process alone, which reads every mask anyway.
    CaseError if it cannot be read.
    """
    try:
        foreground, odd = read_binary_mask(path)
    except ImageError as error:
        raise CaseError(f"{path}: {error}") from None
    if odd and path not in _warned_masks and multiprocessing.parent_process() is None:
        _warned_masks.add(path)
        log.warning("%s: %s", path, odd)
    return foreground.astype(np.uint8)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3), by area along a side that shrinks and bilinear along one that grows."""
    smaller = min(image.shape[0], height), min(image.shape[1], width)
    # one after the other, as OpenCV averages over areas only where no side grows
    for (rows, columns), how in ((smaller, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if image.shape[:2] != (rows, columns):
            image = cv2.resize(image, (columns, rows), interpolation=how)
    return image


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W) by nearest sampling, so that the values stay 0 and 1.

    Foreground that lies between the samples keeps one pixel, so that its case stays one with a lesion.
    """
    if mask.shape == (height, width):
        return mask
    resized = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    if mask.any() and not resized.any():
        foreground = np.argwhere(mask)
        row, column = foreground[len(foreground) // 2]
        resized[row * height // mask.shape[0], column * width // mask.shape[1]] = 1
    return resized


def read_case(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and mask (h, w) at their own sizes.

    Raises CaseError when one cannot be read, or when their aspect ratios differ by over 1 %.
    """
    image, mask = read_image(case.image), read_mask(case.mask)
    (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
    if aspect_ratio_differs((height, width), (mask_height, mask_width)):
        fits = files_may_fit_as_stored(
            case.image, (height, width), case.mask, (mask_height, mask_width)
        )
        raise CaseError(
            f"{case.mask}: the mask is {mask_width}x{mask_height} px, but the image {case.image.name} is "
            f"{width}x{height} px{AS_STORED_HINT if fits else ''}"
        )
    return image, mask


def read_resized(case: Case, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (size, size, 3) and mask (size, size), uint8; CaseError as `read_case`."""
    image, mask = read_case(case)
    return resize_image(image, size, size), resize_mask(mask, size, size)
