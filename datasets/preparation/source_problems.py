"""Why a source gives no cases, or not the intended ones, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets.catalogue import IMAGE_SUFFIXES, DatasetSpec
from datasets.image_files.pictures import READ_SUFFIXES
from datasets.preparation.archives import Source, members
from datasets.preparation.layouts import (
    IN_CAPITALS,
    Affixes,
    PairedFiles,
    affixes_advice,
    images_as_masks,
    own_cases,
    unread_endings,
)
from datasets.splits import quoted
from utils.errors import UserError


def nothing_found(spec: DatasetSpec, sources: Sequence[Source]) -> str:
    """What to say where no case of a catalogued data set is in its sources."""
    packed = [
        file.path
        for file in members(sources)
        if file.suffix in (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z")
    ]
    if packed:
        return (
            f"{spec.name}: the source holds further archives ({quoted(packed, 5)}); archives in "
            "archives and tar are not read. Unpack them, then give --source the folder"
        )
    return (
        f"{spec.name}: no case in {', '.join(source.title for source in sources)}. Expected paths "
        f"that end like {spec.image_pattern} and {spec.mask_pattern}, as in "
        f"{', '.join(spec.archives)} from {spec.source}"
    )


def refuse_unread(image_source: Source, mask_source: Source) -> None:
    """UserError where a source has no file of a format that is read."""
    for source, read in ((image_source, READ_SUFFIXES), (mask_source, IMAGE_SUFFIXES)):
        if endings := unread_endings(list(members([source])), read):
            raise UserError(
                f"{source.title} holds no image that is read: its files end so: {endings}. Convert them to PNG, "
                f"each slice of a volume (read are {', '.join(read)}), and unpack archives"
            )


def refuse_unpaired(
    spec: DatasetSpec,
    files: PairedFiles,
    image_source: Source,
    mask_source: Source,
    image_affixes: Affixes,
    mask_affixes: Affixes,
) -> None:
    """UserError where `files`, paired from the two sources by these affixes, are no cases."""
    if problem := images_as_masks(files):
        raise UserError(f"{spec.name} is not prepared, {len(files.problems)} problem(s): {problem}")
    if not files.cases and not image_affixes and not mask_affixes:
        _refuse_same_names_in_folders(files.repeated)
    if not files.cases and mask_affixes:
        without = own_cases(members([image_source]), members([mask_source]), image_affixes)
        _refuse_needless_affixes(mask_affixes, files, without)
    in_capitals = any(problem.endswith(IN_CAPITALS) for problem in files.problems.values())
    if not files.cases and files.lone_masks and not in_capitals:
        example = next(iter(files.problems))
        raise UserError(
            f"none of the {len(files.problems)} images has a mask of its name: expected one for {example!r}, "
            f"the masks are named like {quoted(files.lone_masks, 2)}. Give {affixes_advice(files)}"
        )


def _refuse_same_names_in_folders(repeated: Sequence[str]) -> None:
    """UserError where several folders hold images and masks, under the same few names in each."""
    folders = {Path(path).parent for path in repeated}
    stems = sorted({Path(path).stem for path in repeated}, key=lambda stem: ("mask" in stem, stem))
    if 1 < len(stems) <= len(folders) and "mask" in stems[-1]:
        raise UserError(
            f"each of {len(folders)} folders holds files named {quoted(stems, 5)}: "
            f"say which are images and which masks, as in --image-suffix {stems[0]} --mask-suffix {stems[1]}"
        )


def _refuse_needless_affixes(
    mask_affixes: Affixes, files: PairedFiles, without: PairedFiles
) -> None:
    """UserError where `without` affixes of masks more masks have an image than `files` has others."""
    masks = [mask.path for case in without.cases.values() for mask in case.masks]
    if len(masks) > len(set(files.lone_masks) - set(masks)):
        begins = [f"begins with {mask_affixes.prefix!r}"] if mask_affixes.prefix else []
        ends = [f"ends in {mask_affixes.suffix!r}"] if mask_affixes.suffix else []
        options = " and ".join(["--mask-prefix"] * len(begins) + ["--mask-suffix"] * len(ends))
        raise UserError(
            f"none of the {len(files.problems)} images has a mask whose name {' and '.join(begins + ends)}, but "
            f"{len(masks)} have a mask of their own name, like {masks[0]!r}. Leave out {options}"
        )
