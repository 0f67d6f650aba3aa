"""Which files of a source are the image and the masks of which case."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from datasets.archives import Member
from datasets.catalogue import IMAGE_EXTENSIONS, DatasetSpec
from datasets.splits import name_problem


@dataclass(frozen=True)
class SourceCase:
    """One image and its masks as they lie in a source; of several masks the union is meant."""

    name: str
    image: Member
    masks: tuple[Member, ...]


@dataclass(frozen=True)
class Found:
    """Usable cases by name, what is wrong with the others, by name too, and masks of no image."""

    cases: dict[str, SourceCase]
    problems: dict[str, str]
    lone_masks: list[str]


def published_cases(spec: DatasetSpec, files: Iterable[Member]) -> Found:
    """Cases in the published layout of a catalogued data set, whatever folders lie above it."""
    image_pattern = re.compile(rf"(?:.*/)?{spec.image_pattern}", re.IGNORECASE)
    mask_pattern = re.compile(rf"(?:.*/)?{spec.mask_pattern}", re.IGNORECASE)
    images: dict[str, list[Member]] = {}
    masks: dict[str, list[Member]] = {}
    for file in files:
        for pattern, found in ((image_pattern, images), (mask_pattern, masks)):
            if match := pattern.fullmatch(file.path):
                found.setdefault("_".join(match.groups()), []).append(file)
    return _paired(images, masks, spec.several_masks)


def own_cases(
    images: Iterable[Member], masks: Iterable[Member], image_suffix: str = "", mask_suffix: str = ""
) -> Found:
    """Cases of any data set, matched by stem: `<name><image_suffix>.*`, `<name><mask_suffix>.*`.

    Images and masks may lie in one folder if `mask_suffix` tells them apart.
    """
    by_name = _by_stem(images, image_suffix)
    if mask_suffix:
        by_name = {name: found for name, found in by_name.items() if not name.endswith(mask_suffix)}
    return _paired(by_name, _by_stem(masks, mask_suffix), several_masks=False)


def _by_stem(files: Iterable[Member], suffix: str) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = {}
    for file in files:
        stem = PurePosixPath(file.path).stem
        if file.suffix in IMAGE_EXTENSIONS and stem.endswith(suffix):
            found.setdefault(stem.removesuffix(suffix), []).append(file)
    return found


def _paired(
    images: dict[str, list[Member]], masks: dict[str, list[Member]], several_masks: bool
) -> Found:
    lone = (masks[name] for name in sorted(masks.keys() - images.keys()))
    found = Found({}, {}, [file.path for files in lone for file in files])
    for name in sorted(images):
        image, *more_images = images[name]
        case_masks = masks.get(name, [])
        problem = name_problem(name)
        if problem:
            found.problems[name] = f"the name {problem}"
        elif more_images:
            found.problems[name] = f"two images, {image} and {more_images[0]}"
        elif not case_masks:
            found.problems[name] = f"no mask for the image {image}"
        elif len(case_masks) > 1 and not several_masks:
            found.problems[name] = f"two masks, {case_masks[0]} and {case_masks[1]}"
        else:
            found.cases[name] = SourceCase(name, image, tuple(case_masks))
    return found
