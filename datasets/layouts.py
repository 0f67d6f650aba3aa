"""Which files of a source are the image and the masks of which case."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from datasets.archives import Member
from datasets.catalogue import IMAGE_EXTENSIONS, DatasetSpec
from datasets.pictures import DICOM_SUFFIXES
from datasets.splits import PART_NAMES, name_problem, nfc

_NO_PICTURES = {
    *(".txt", ".md", ".pdf", ".html", ".csv", ".tsv", ".tab", ".xls", ".xlsx"),
    *(".json", ".xml", ".yaml", ".yml", ".py", ".log", ".db"),
}
"""Endings of files that lie beside images and are none."""
_SAME_FILE = "are the same file; give --mask-suffix"
_NNUNET_CHANNEL = "_0000"
"""How the names of images end in the layout of nnU-Net, and not those of their masks."""
_IMAGE_FOLDERS = {"image", "images", "img", "imgs", "imagestr"}
_MASK_FOLDERS = {
    *("mask", "masks", "label", "labels", "labelstr", "gt", "ground_truth", "groundtruth"),
    *("annotation", "annotations", "segmentation", "segmentations"),
}
"""Folders that say of what kind the files in them are, in lower case."""
_NOT_READ = "is in a format that is not read; convert it to PNG"


@dataclass(frozen=True)
class SourceCase:
    """One image and its masks as they lie in a source; several masks are meant to be united."""

    name: str
    image: Member
    masks: tuple[Member, ...]


@dataclass(frozen=True)
class PairedFiles:
    """The files of a source, as cases."""

    cases: dict[str, SourceCase]
    """Cases that can be used, by name."""
    problems: dict[str, str]
    """What is wrong with the others, by name."""
    lone_masks: list[str]
    """Paths of masks that belong to no image."""
    repeated: list[str] = field(default_factory=list)
    """Paths of images whose name another image has as well."""
    by_folder: bool = False
    """Whether cases are named by the folders of their files."""
    parts: dict[str, str] = field(default_factory=dict)
    """The part of a split, of own data by the folder of the image, where this is called as a part is."""


def published_cases(spec: DatasetSpec, files: Iterable[Member]) -> PairedFiles:
    """Cases in the published layout of a catalogued data set, whatever folders lie above it."""
    image_pattern = re.compile(rf"(?:.*/)?{spec.image_pattern}", re.IGNORECASE)
    mask_pattern = re.compile(rf"(?:.*/)?{spec.mask_pattern}", re.IGNORECASE)
    images: dict[str, list[Member]] = {}
    masks: dict[str, list[Member]] = {}
    for file in files:
        for pattern, files_of in ((image_pattern, images), (mask_pattern, masks)):
            if match := pattern.fullmatch(nfc(file.path)):
                files_of.setdefault("_".join(match.groups()), []).append(file)
    return _paired(images, masks)


def own_cases(
    images: Iterable[Member], masks: Iterable[Member], image_suffix: str = "", mask_suffix: str = ""
) -> PairedFiles:
    """Cases of any data set, matched by stem: `<name><image_suffix>.*`, `<name><mask_suffix>.*`.

    With a `mask_suffix`, `<name><mask_suffix>_<number>.*` are further masks of the image, and images
    and masks may lie in one folder. Where images repeat a name, folders called images and masks tell which
    is which, or else, where most repeat one, each case is named by its folders, if most then have a mask.
    """
    images, masks = list(images), list(masks)
    files = _matched(images, masks, image_suffix, mask_suffix)
    if not files.repeated:
        return files
    images, masks = _by_kind_of_folder(images, masks)
    for by_folder in (False, True):
        other = _matched(images, masks, image_suffix, mask_suffix, by_folder)
        repeated = set(files.repeated) & {image.path for image in images}
        paired = repeated & {case.image.path for case in other.cases.values()}
        renames_more = by_folder and len(files.cases) >= len(repeated)
        if not other.repeated and not renames_more and len(paired) > len(repeated) / 2:
            return other
    return files


def _matched(
    images: Sequence[Member],
    masks: Sequence[Member],
    image_suffix: str,
    mask_suffix: str,
    by_folder: bool = False,
) -> PairedFiles:
    """Cases as in `own_cases`, each named by the stem, or also by the folders of its files."""
    number = r"(?:_\d+)?" if mask_suffix else ""
    above = (_common_folders(images), _common_folders(masks)) if by_folder else (None, None)
    of_image = _Naming(re.compile(f"(.*){re.escape(nfc(image_suffix))}", re.DOTALL), above[0])
    of_mask = _Naming(re.compile(f"(.*){re.escape(nfc(mask_suffix))}{number}", re.DOTALL), above[1])
    images_of = _by_name((file for file in images if file.suffix in DICOM_SUFFIXES), of_image)
    images_of |= _by_name(filter(_is_read, images), of_image)
    if mask_suffix:
        certain = nfc(mask_suffix) if image_suffix else ""
        images_of, masks = _apart(images_of, masks, of_mask, certain)
    read = list(filter(_is_read, masks))
    masks_of, masks_in_any_format = _by_name(read, of_mask), _by_name(masks, of_mask)
    unread = {
        name: files[0]
        for name, files in _by_name(filter(_may_be_picture, images), of_image).items()
        if name not in images_of
        and any(mask.place() != files[0].place() for mask in masks_in_any_format.get(name, ()))
    }
    lone = {name: files for name, files in masks_of.items() if name not in unread}
    paired = _paired(images_of, lone, masks_in_any_format, by_folder)
    for name, image in unread.items():
        paired.problems[name] = f"the image {image} {_NOT_READ}"
    image_of = {name: files[0] for name, files in images_of.items()} | unread
    parts = {name: _part(image) for name, image in image_of.items()}
    paired.parts.update((name, part) for name, part in parts.items() if part)
    image_stems = {file.stem for files in images_of.values() for file in files}
    others = (file for file in read if not of_mask.stem.fullmatch(file.stem))
    paired.lone_masks.extend(file.path for file in others if file.stem not in image_stems)
    if paired.lone_masks:
        image_places = {file.place() for files in images_of.values() for file in files}
        are_images = {file.path for file in read if file.place() in image_places}
        paired.lone_masks[:] = [path for path in paired.lone_masks if path not in are_images]
    return paired


@dataclass(frozen=True)
class _Naming:
    """How the names of cases are found in the paths of files."""

    stem: re.Pattern[str]
    """Its first group is the name."""
    above: tuple[str, ...] | None = None
    """Where names also hold the folders, those that are left out as all files lie in them."""

    def name(self, file: Member) -> str | None:
        """The name of the case, None for a file that `stem` does not match."""
        match = self.stem.fullmatch(file.stem)
        if match is None or self.above is None:
            return match and match[1]
        parts = [*_folders(file)[len(self.above) :], match[1]]
        return "_".join(part for part in parts if part)


def _folders(file: Member) -> tuple[str, ...]:
    """The folders that a file lies in, but for those that say what kind of file it is."""
    kinds = _IMAGE_FOLDERS | _MASK_FOLDERS
    parents = PurePosixPath(nfc(file.path)).parent.parts
    return tuple(part for part in parents if part.casefold() not in kinds)


def _part(file: Member) -> str | None:
    """The part of a split that the folders of a file name; None for none, or several."""
    folders = PurePosixPath(file.path).parent.parts
    parts = {PART_NAMES[each.casefold()] for each in folders if each.casefold() in PART_NAMES}
    return parts.pop() if len(parts) == 1 else None


def _common_folders(files: Sequence[Member]) -> tuple[str, ...]:
    """The first folders of all files, as far as they are the same."""
    paths = [_folders(file) for file in files if _is_read(file) or file.suffix in DICOM_SUFFIXES]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return tuple(common)


def _by_kind_of_folder(
    images: Sequence[Member], masks: Sequence[Member]
) -> tuple[list[Member], list[Member]]:
    """Images and masks by the names of their folders, as far as these tell."""

    def lies_in(file: Member, kinds: Set[str]) -> bool:
        return any(part.casefold() in kinds for part in PurePosixPath(file.path).parent.parts)

    in_mask_folders = [file for file in masks if lies_in(file, _MASK_FOLDERS)]
    return (
        [file for file in images if not lies_in(file, _MASK_FOLDERS)],
        in_mask_folders or [file for file in masks if not lies_in(file, _IMAGE_FOLDERS)],
    )


def _apart(
    images_of: dict[str, list[Member]],
    masks: Sequence[Member],
    of_mask: _Naming,
    certain: str,
) -> tuple[dict[str, list[Member]], list[Member]]:
    """Images and masks that may lie in one folder, each file as the one that it is.

    A stem that ends in `certain` is of a mask. Others that match `of_mask` are so where there is an image of
    that name: `a_0` may be an image by its suffix, or the further mask of `a`.
    """
    mask_places = {
        file.place()
        for name, files in _by_name(masks, of_mask).items()
        for file in files
        if file.stem.endswith(certain) or name in images_of
    }
    images_of = _without(images_of, mask_places)
    image_places = {file.place() for files in images_of.values() for file in files}
    return images_of, [file for file in masks if file.place() not in image_places]


def common_suffix(files: PairedFiles) -> str | None:
    """What masks without an image have after the name of one, such as `_mask`; None if that differs.

    Numbers of further masks, as in `_mask_1`, are left out.
    """
    rests = set()
    for path in files.lone_masks:
        stem = nfc(PurePosixPath(path).stem)
        name = max(filter(stem.startswith, files.problems), key=len, default="")
        rests.add(re.sub(r"(?<=.)_\d+$", "", stem.removeprefix(name)) if name else None)
    return rests.pop() if len(rests) == 1 else None


def _is_read(file: Member) -> bool:
    return file.suffix in IMAGE_EXTENSIONS


def images_as_masks(files: PairedFiles) -> str | None:
    """What to say where most images are taken for their own masks, for want of a suffix."""
    names = sorted(name for name, problem in files.problems.items() if problem.endswith(_SAME_FILE))
    if files.cases or len(names) <= len(files.problems) / 2:
        return None
    problem, every, rests = files.problems[names[0]], set(names), Counter[str]()
    for name in names:
        shorter = (name[:end] for end in range(len(name) - 1, 0, -1))
        if (stem := next((each for each in shorter if each in every), None)) is not None:
            rests[re.sub(r"(?<=.)_\d+$", "", name.removeprefix(stem))] += 1
    suffix, count = max(rests.items(), key=lambda item: item[1], default=("", 0))
    if count <= len(names) / 4:
        return problem
    many = f"({count} of {len(names)} names are another one with this ending)"
    if suffix == _NNUNET_CHANNEL:
        return f"{problem.removesuffix('--mask-suffix')}--image-suffix {suffix} {many}"
    return f"{problem} {suffix} {many}"


def _may_be_picture(file: Member) -> bool:
    """Whether a file may be an image in a format that is not read."""
    return not _is_read(file) and file.suffix not in _NO_PICTURES


def unread_endings(files: Sequence[Member], read: Sequence[str]) -> str:
    """How many files end in what, as `6 in .webp, 2 in .nii.gz`, if none in `read`; otherwise ''."""
    if any(file.suffix in read for file in files):
        return ""
    endings = (
        ".nii.gz" if file.path.lower().endswith(".nii.gz") else file.suffix or "no ending"
        for file in files
        if _may_be_picture(file)
    )
    return ", ".join(f"{count} in {ending}" for ending, count in Counter(endings).most_common(5))


def _by_name(files: Iterable[Member], naming: _Naming) -> dict[str, list[Member]]:
    """Files by the name of their case, without those that have none."""
    files_of: dict[str, list[Member]] = {}
    for file in files:
        if (name := naming.name(file)) is not None:
            files_of.setdefault(name, []).append(file)
    return files_of


def _without(files_of: Mapping[str, Sequence[Member]], places: Set[str]) -> dict[str, list[Member]]:
    """The files that lie elsewhere, by name."""
    kept = {n: [f for f in files if f.place() not in places] for n, files in files_of.items()}
    return {name: files for name, files in kept.items() if files}


def _paired(
    images: Mapping[str, Sequence[Member]],
    masks: Mapping[str, Sequence[Member]],
    in_any_format: Mapping[str, Sequence[Member]] = {},
    by_folder: bool = False,
) -> PairedFiles:
    """Join images and masks of one name; `in_any_format` also holds masks of formats not read."""
    lone = (masks[name] for name in sorted(masks.keys() - images.keys()))
    paired = PairedFiles({}, {}, [file.path for files in lone for file in files], [], by_folder)
    for name in sorted(images):
        image, *more_images = images[name]
        case_masks = masks.get(name, [])
        twice = _same_stem(case_masks)
        problem = name_problem(name)
        if more_images:
            paired.repeated.extend(file.path for file in images[name])
        if problem:
            paired.problems[name] = f"the name {problem}"
        elif more_images:
            paired.problems[name] = _two("images", image, more_images[0])
        elif not case_masks and name in in_any_format:
            paired.problems[name] = f"the mask {in_any_format[name][0]} {_NOT_READ}"
        elif not case_masks:
            paired.problems[name] = f"no mask for the image {image}"
        elif image.place() in {mask.place() for mask in case_masks}:
            paired.problems[name] = f"image and mask of {image} {_SAME_FILE}"
        elif twice:
            paired.problems[name] = _two("masks", *twice)
        else:
            paired.cases[name] = SourceCase(name, image, tuple(case_masks))
    return paired


def _two(kind: str, one: Member, other: Member) -> str:
    """The problem of two files for one; where their names look the same, with the reason."""
    alike = one.path != other.path and nfc(one.path) == nfc(other.path)
    reason = ", whose names differ in their Unicode form alone (NFC, NFD)" if alike else ""
    return f"two {kind}, {one} and {other}{reason}"


def _same_stem(files: Iterable[Member]) -> tuple[Member, Member] | None:
    """Two files that differ in folder or extension alone, if there are any."""
    first: dict[str, Member] = {}
    for file in files:
        if (other := first.setdefault(file.stem, file)) is not file:
            return other, file
    return None
