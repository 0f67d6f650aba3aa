"""Which files of a source are the image and the masks of which case."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from datasets.case_names import joined_path, name_problem, nfc
from datasets.catalogue import DICOM_SUFFIXES, IMAGE_SUFFIXES, DatasetSpec
from datasets.preparation.archives import Member
from datasets.split_tables import PART_NAMES

_NO_PICTURES = {
    *(".txt", ".md", ".pdf", ".html", ".csv", ".tsv", ".tab", ".xls", ".xlsx"),
    *(".json", ".xml", ".yaml", ".yml", ".py", ".log", ".db"),
}
"""Endings of files that lie beside images and are none."""
_SAME_FILE = "are the same file; give --mask-suffix"
IN_CAPITALS = "differs in capital letters alone; give both the same"
_NNUNET_CHANNEL = "_0000"
"""How the names of images end in the layout of nnU-Net, and not those of their masks."""
_IMAGE_FOLDERS = {"image", "images", "img", "imgs", "imagestr"}
_MASK_FOLDERS = {
    *("mask", "masks", "label", "labels", "labelstr", "gt", "ground_truth", "groundtruth"),
    *("annotation", "annotations", "segmentation", "segmentations"),
}
"""Folders that say of what kind the files in them are, in lower case."""
_WORDS = {
    "prefix": re.compile(r"^[^\W\d_]+[-_. ]?"),
    "suffix": re.compile(r"[-_. ]?[^\W\d_]+$"),
}
"""What may stand before and after the names of cases, as `img_` and `_seg`."""
_MASK_WORDS = re.compile("mask|seg|label|gt|truth|anno", re.IGNORECASE)
"""Words that tell masks from images."""
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
    case_of_path: dict[str, str] = field(default_factory=dict)
    """Where cases are named by folders, each by its name and by the path of its image: folders and name
    joined by `_`, without extension; also without its first folders, where no other path ends so."""
    parts: dict[str, str] = field(default_factory=dict)
    """The part of a split, of own data by the folder of the image, where this is called as a part is."""


def published_cases(spec: DatasetSpec, files: Iterable[Member]) -> PairedFiles:
    """Cases in the published layout of a catalogued data set, whatever folders lie above it."""
    image_pattern = re.compile(rf"(?:.*/)?{spec.image_pattern}", re.IGNORECASE)
    mask_pattern = re.compile(rf"(?:.*/)?{spec.mask_pattern}", re.IGNORECASE)
    images: dict[str, list[Member]] = {}
    masks: dict[str, list[Member]] = {}
    for file in files:
        for pattern, files_by_name in ((image_pattern, images), (mask_pattern, masks)):
            if match := pattern.fullmatch(nfc(file.path)):
                files_by_name.setdefault("_".join(match.groups()), []).append(file)
    return _paired(images, masks)


@dataclass(frozen=True)
class Affixes:
    """What the stems of files have before and after the name of the case."""

    prefix: str = ""
    suffix: str = ""

    def __bool__(self) -> bool:
        return bool(self.prefix or self.suffix)

    def pattern(self, number: str = "") -> re.Pattern[str]:
        """A pattern of stems, whose first group is the name; `number` may follow the suffix."""
        prefix, suffix = (re.escape(nfc(affix)) for affix in (self.prefix, self.suffix))
        return re.compile(f"{prefix}(.*){suffix}{number}", re.DOTALL)


NO_AFFIXES = Affixes()


def own_cases(
    images: Iterable[Member],
    masks: Iterable[Member],
    image_affixes: Affixes = NO_AFFIXES,
    mask_affixes: Affixes = NO_AFFIXES,
) -> PairedFiles:
    """Cases of any data set, matched by stem: `<prefix><name><suffix>.*` for image and mask.

    With a suffix of masks, `<prefix><name><suffix>_<number>.*` are further masks of the image. With affixes
    of masks, images and masks may lie in one folder. Where images repeat a name, folders called images and
    masks tell which is which, or else, where most repeat one, each case is named by its folders, if most
    then have a mask.
    """
    images, masks = list(images), list(masks)
    files = _matched(images, masks, image_affixes, mask_affixes)
    if not files.repeated:
        return files
    images, masks = _by_kind_of_folder(images, masks)
    for by_folder in (False, True):
        other = _matched(images, masks, image_affixes, mask_affixes, by_folder)
        repeated = set(files.repeated) & {image.path for image in images}
        paired = repeated & {case.image.path for case in other.cases.values()}
        renames_more = by_folder and len(files.cases) >= len(repeated)
        if not other.repeated and not renames_more and len(paired) > len(repeated) / 2:
            return other
    return files


def _matched(
    images: Sequence[Member],
    masks: Sequence[Member],
    image_affixes: Affixes,
    mask_affixes: Affixes,
    by_folder: bool = False,
) -> PairedFiles:
    """Cases as in `own_cases`, each named by the stem, or also by the folders of its files."""
    number = r"(?:_\d+)?" if mask_affixes.suffix else ""
    above = (_common_folders(images), _common_folders(masks)) if by_folder else (None, None)
    image_naming = _Naming(image_affixes.pattern(), above[0])
    mask_naming = _Naming(mask_affixes.pattern(number), above[1])
    in_dicom = (file for file in images if file.suffix in DICOM_SUFFIXES)
    images_by_name = _by_name(in_dicom, image_naming)
    images_by_name |= _by_name(filter(_is_read, images), image_naming)
    if mask_affixes:
        certain = mask_affixes.pattern() if image_affixes else mask_naming.stem
        images_by_name, masks = _apart(images_by_name, masks, mask_naming, certain)
    read = list(filter(_is_read, masks))
    masks_by_name = _by_name(read, mask_naming)
    unfiltered_masks_by_name = _by_name(masks, mask_naming)
    unread = {
        name: files[0]
        for name, files in _by_name(filter(_may_be_picture, images), image_naming).items()
        if name not in images_by_name
        and any(mask.place() != files[0].place() for mask in unfiltered_masks_by_name.get(name, ()))
    }
    lone = {name: files for name, files in masks_by_name.items() if name not in unread}
    paired = _paired(images_by_name, lone, unfiltered_masks_by_name, by_folder)
    first_image_by_name = {name: files[0] for name, files in images_by_name.items()} | unread
    parts = {name: _part(image) for name, image in first_image_by_name.items()}
    image_stems = {file.stem for files in images_by_name.values() for file in files}
    others = (file for file in read if not mask_naming.stem.fullmatch(file.stem))
    lone_masks = paired.lone_masks + [f.path for f in others if f.stem not in image_stems]
    if lone_masks:
        image_places = {file.place() for files in images_by_name.values() for file in files}
        are_images = {file.path for file in read if file.place() in image_places}
        lone_masks = [path for path in lone_masks if path not in are_images]
    return replace(
        paired,
        problems=paired.problems
        | {name: f"the image {image} {_NOT_READ}" for name, image in unread.items()},
        lone_masks=lone_masks,
        case_of_path=_by_path(first_image_by_name) if by_folder else {},
        parts={name: part for name, part in parts.items() if part},
    )


def _by_path(first_image_by_name: Mapping[str, Member]) -> dict[str, str]:
    """Cases as `PairedFiles.case_of_path` has them."""
    names: dict[str, list[str]] = {}
    for name, image in first_image_by_name.items():
        path = PurePosixPath(nfc(image.path)).with_suffix("")
        for parts in range(2, len(path.parts) + 1):
            names.setdefault(joined_path(str(path), parts), []).append(name)
    found = {path: name for path, (name, *others) in names.items() if not others}
    return found | {name: name for name in first_image_by_name}


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
    images_by_name: dict[str, list[Member]],
    masks: Sequence[Member],
    mask_naming: _Naming,
    certain: re.Pattern[str],
) -> tuple[dict[str, list[Member]], list[Member]]:
    """Images and masks that may lie in one folder, each file as the one that it is.

    A stem that `certain` matches is of a mask. Others that match `mask_naming` are so where there is an image
    of that name: `a_0` may be an image by its suffix, or the further mask of `a`.
    """
    mask_places = {
        file.place()
        for name, files in _by_name(masks, mask_naming).items()
        for file in files
        if certain.fullmatch(file.stem) or name in images_by_name
    }
    images_by_name = _without(images_by_name, mask_places)
    image_places = {file.place() for files in images_by_name.values() for file in files}
    return images_by_name, [file for file in masks if file.place() not in image_places]


def affixes_advice(files: PairedFiles) -> str:
    """The options by which masks without an image would have one; all that there are where none is found."""
    stems = [nfc(PurePosixPath(path).stem) for path in files.lone_masks]
    after, before = set[str | None](), set[str | None]()
    for stem in stems:
        name = max(filter(stem.startswith, files.problems), key=len, default="")
        # without the numbers of further masks, as in `_mask_1`
        after.add(re.sub(r"(?<=.)_\d+$", "", stem.removeprefix(name)) if name else None)
        name = max(filter(stem.endswith, files.problems), key=len, default="")
        before.add(stem.removesuffix(name) if name else None)
    for rests, option in ((after, "--mask-suffix"), (before, "--mask-prefix")):
        rest = rests.pop() if len(rests) == 1 else None
        if rest:
            return f"{option} {rest}"
    for which in _WORDS:
        images, masks = _by_word(which, files.problems), _by_word(which, stems)
        if len(images) == len(masks) == 1:
            (image_word, names), (mask_word, others) = *images.items(), *masks.items()
            if names & others:
                return f"--image-{which} {image_word} --mask-{which} {mask_word}"
    return "the options that fit: --image-prefix, --image-suffix, --mask-prefix, --mask-suffix"


def _by_word(which: str, stems: Iterable[str]) -> dict[str, set[str]]:
    """What is left of stems without the word before or after it, by this word."""
    left: dict[str, set[str]] = {}
    for stem in stems:
        if word := _WORDS[which].search(stem):
            left.setdefault(word[0], set()).add(stem[: word.start()] + stem[word.end() :])
    return left


def _is_read(file: Member) -> bool:
    return file.suffix in IMAGE_SUFFIXES


def images_as_masks(files: PairedFiles) -> str | None:
    """What to say where most images are taken for their own masks, for want of a suffix."""
    names = sorted(name for name, problem in files.problems.items() if problem.endswith(_SAME_FILE))
    if files.cases or len(names) <= len(files.problems) / 2:
        return None
    problem, every = files.problems[names[0]], set(names)
    rests: dict[str, Counter[str]] = {"suffix": Counter(), "prefix": Counter()}
    for name in names:
        shorter = (name[:end] for end in range(len(name) - 1, 0, -1))
        if (stem := next((each for each in shorter if each in every), None)) is not None:
            rests["suffix"][re.sub(r"(?<=.)_\d+$", "", name.removeprefix(stem))] += 1
        shorter = (name[start:] for start in range(1, len(name)))
        if (stem := next((each for each in shorter if each in every), None)) is not None:
            before = name.removesuffix(stem)
            rests["prefix"][before] += not before.isdecimal()  # `10` is not `0` with a prefix
    which, affix, count = max(
        ((which, *pair) for which, found in rests.items() for pair in found.most_common(1)),
        key=lambda item: item[2],
        default=("suffix", "", 0),
    )
    if count <= len(names) / 4:
        return problem.removesuffix("--mask-suffix") + (_words_advice(names) or "--mask-suffix")
    place = "ending" if which == "suffix" else "beginning"
    many = f"({count} of {len(names)} names are another one with this {place})"
    kind = "image" if affix == _NNUNET_CHANNEL else "mask"
    return f"{problem.removesuffix('--mask-suffix')}--{kind}-{which} {affix} {many}"


def _words_advice(names: Sequence[str]) -> str | None:
    """The options where images and masks, all in `names`, begin or end with a word of their own."""
    for which in _WORDS:
        left = _by_word(which, names)
        masks = [word for word in left if _MASK_WORDS.search(word)]
        if len(left) == 2 and len(masks) == 1 and set.intersection(*left.values()):
            (images,) = left.keys() - masks
            return f"--image-{which} {images} --mask-{which} {masks[0]}"
    return None


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
    files_by_name: dict[str, list[Member]] = {}
    for file in files:
        if (name := naming.name(file)) is not None:
            files_by_name.setdefault(name, []).append(file)
    return files_by_name


def _without(
    files_by_name: Mapping[str, Sequence[Member]], places: Set[str]
) -> dict[str, list[Member]]:
    """The files that lie elsewhere, by name."""
    kept = {n: [f for f in files if f.place() not in places] for n, files in files_by_name.items()}
    return {name: files for name, files in kept.items() if files}


def _paired(
    images: Mapping[str, Sequence[Member]],
    masks: Mapping[str, Sequence[Member]],
    unfiltered_masks_by_name: Mapping[str, Sequence[Member]] = {},
    by_folder: bool = False,
) -> PairedFiles:
    """Join images and masks of one name; `unfiltered_masks_by_name` also holds masks of formats not read."""
    lone = sorted(masks.keys() - images.keys())
    lone_in_small = {name.casefold(): masks[name][0] for name in lone}
    cases: dict[str, SourceCase] = {}
    problems: dict[str, str] = {}
    for name in sorted(images):
        case_masks = masks.get(name, [])
        problem = _problem_of(
            name,
            images[name],
            case_masks,
            unread=next(iter(unfiltered_masks_by_name.get(name, ())), None),
            in_capitals=lone_in_small.get(name.casefold()),
        )
        if problem is None:
            cases[name] = SourceCase(name, images[name][0], tuple(case_masks))
        else:
            problems[name] = problem
    return PairedFiles(
        cases,
        problems,
        lone_masks=[file.path for name in lone for file in masks[name]],
        repeated=[f.path for name in sorted(images) if len(images[name]) > 1 for f in images[name]],
        by_folder=by_folder,
    )


def _problem_of(
    name: str,
    images: Sequence[Member],
    masks: Sequence[Member],
    unread: Member | None,
    in_capitals: Member | None,
) -> str | None:
    """Why images and masks of one name are no case.

    Without a mask, one of a format that is not read may be `unread`, one whose name differs `in_capitals`.
    """
    image, *more_images = images
    if problem := name_problem(name):
        return f"the name {problem}"
    if more_images:
        return _two("images", image, more_images[0])
    if not masks and unread is not None:
        return f"the mask {unread} {_NOT_READ}"
    if not masks and in_capitals is not None:
        return f"no mask for the image {image}, but {in_capitals} {IN_CAPITALS}"
    if not masks:
        return f"no mask for the image {image}"
    if image.place() in {mask.place() for mask in masks}:
        return f"image and mask of {image} {_SAME_FILE}"
    if twice := _same_stem(masks):
        return _two("masks", *twice)
    return None


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
