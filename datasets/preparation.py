"""The steps of preparing a data set: find the cases in a source, choose a split, write both."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from datasets.archives import DEFAULT_LIMITS, Limits, Source, members, open_source
from datasets.catalogue import IMAGE_EXTENSIONS, DatasetSpec, spec_for
from datasets.decoding import MAX_MEGAPIXELS
from datasets.group_tables import TAB_SUFFIXES, check_groups, cut_groups_note, read_group_table
from datasets.layouts import (
    IN_CAPITALS,
    NO_AFFIXES,
    Affixes,
    PairedFiles,
    affixes_advice,
    images_as_masks,
    own_cases,
    published_cases,
    unread_endings,
)
from datasets.masks import JPEG_CUT, JPEG_LABELS
from datasets.pictures import SUFFIXES
from datasets.prepared import NOTES
from datasets.splits import (
    SEED,
    Split,
    cases_by_group,
    grouped_split,
    quoted,
    random_split,
    read_split,
    read_split_for,
)
from datasets.staging import Staging, staged
from datasets.windowing import window_text
from datasets.writing import listed_problems, write_cases
from utils.errors import UserError, listed
from utils.images import encode_png
from utils.machine import available_cores

PHANTOM_CASES = 400
NOTES_SHOWN = 5
FEW_GROUPS = 5
"""A split that is drawn is warned of where it tests on fewer groups."""
TEST_ONLY = "test only"
"""The manifest's entry `splits` of a data set that is not trained on."""
BY_FOLDERS = "folders"
"""The manifest's entry `splits` of a data set that came divided into folders."""


@dataclass(frozen=True)
class PreparationOptions:
    """What a data set is prepared with, whatever its source."""

    root: Path
    """The data set becomes a folder in this one."""
    splits: Path | None = None
    """A split file; without it, folders called train and test are the parts, or 80 % are drawn for train."""
    groups: Path | None = None
    """A CSV of case names and their groups, in place of the metadata among the sources."""
    seed: int = SEED
    limits: Limits = DEFAULT_LIMITS
    follow_links: bool = False
    test_only: bool = False
    """All cases are for testing."""
    skip_unusable: bool = False
    """Cases that are missing or unusable are left out."""

    def open(self, path: Path) -> Source:
        """A folder or zip, read within these limits."""
        return open_source(path, self.limits, self.follow_links)


def prepare_published(
    spec: DatasetSpec,
    source_paths: Sequence[Path],
    options: PreparationOptions,
    include_normal: bool = False,
) -> Path:
    """Prepare a catalogued data set from its archives, or folders that hold them or their content.

    Cases that are not in the split are left out. Raises UserError that lists all cases which are
    missing or unusable, unless these are skipped; what was done until then stays for the next run.
    Returns the prepared folder.
    """
    paths, metadata = archives_and_metadata(spec, source_paths)
    sources = [options.open(path) for path in paths]
    files = published_cases(spec, members(sources))
    if not files.cases:
        raise UserError(_nothing_found(spec, sources))
    table = options.groups or metadata
    group_of = read_group_table(table, spec.group_columns, or_first_two=options.groups is not None)
    split = _choose_split(spec, files, group_of, include_normal, options)
    check_groups(table, group_of, split)
    if spec.group_columns and table is None and not options.test_only:
        _warn(
            f"no metadata CSV among the sources, so images of one {spec.group_columns[1]} may lie "
            f"in both train and test, and --check cannot tell; give {spec.archives[-1]} to --source as well"
        )
    record = {
        "sources": [path.name for path in paths],
        "include_normal": include_normal,
        "groups_sha256": file_digest(table),
        **_split_record(options, split),
    }
    return _write(spec, files, split, group_of, record, options)


def prepare_own(
    spec: DatasetSpec,
    images: Path,
    masks: Path,
    options: PreparationOptions,
    of_images: Affixes = NO_AFFIXES,
    of_masks: Affixes = NO_AFFIXES,
) -> Path:
    """Prepare any other data set from a folder or zip of images and one of masks.

    Both are named `<prefix><name><suffix>.*`, image and mask each with its own affixes. With `any_label` in
    `spec`, any value above 0 is foreground, with `labels` these values are. Otherwise as `prepare_published`.
    """
    image_source, mask_source = options.open(images), options.open(masks)
    files = own_cases(members([image_source]), members([mask_source]), of_images, of_masks)
    for source, read in ((image_source, SUFFIXES), (mask_source, IMAGE_EXTENSIONS)):
        if endings := unread_endings(list(members([source])), read):
            raise UserError(
                f"{source.title} holds no image that is read: its files end so: {endings}. Convert them to PNG, "
                f"each slice of a volume (read are {', '.join(read)}), and unpack archives"
            )
    if not files.cases and not files.problems:
        raise UserError(
            f"no images named {of_images.prefix}*{of_images.suffix} in {images}; "
            f"expected files ending in {', '.join(IMAGE_EXTENSIONS)}"
        )
    if problem := images_as_masks(files):
        raise UserError(f"{spec.name} is not prepared, {len(files.problems)} problem(s): {problem}")
    if not files.cases and not of_images and not of_masks:
        _refuse_same_names_in_folders(files.repeated)
    if not files.cases and of_masks:
        without = own_cases(members([image_source]), members([mask_source]), of_images)
        _refuse_needless_affixes(of_masks, files, without)
    in_capitals = any(problem.endswith(IN_CAPITALS) for problem in files.problems.values())
    if not files.cases and files.lone_masks and not in_capitals:
        example = next(iter(files.problems))
        raise UserError(
            f"none of the {len(files.problems)} images has a mask of its name: expected one for {example!r}, "
            f"the masks are named like {quoted(files.lone_masks, 2)}. Give {affixes_advice(files)}"
        )
    if files.by_folder:
        print(
            f"images repeat a name, so cases are named by their folders: {quoted(sorted(files.cases), 3)}"
            + ("" if options.groups else "; where folders are patients, give --groups")
        )
    group_of = read_group_table(options.groups, None)
    other_split = options.splits is not None or options.test_only
    by_folders = None if other_split else _split_by_folders(files)
    split = by_folders or _choose_split(spec, files, group_of, True, options)
    check_groups(options.groups, group_of, split)
    record = {
        "sources": [images.name, masks.name],
        "image_prefix": of_images.prefix,
        "image_suffix": of_images.suffix,
        "mask_prefix": of_masks.prefix,
        "mask_suffix": of_masks.suffix,
        "any_label": spec.any_label,
        "label": list(spec.labels),
        "window": window_text(spec.window),
        "groups_sha256": file_digest(options.groups),
        **_split_record(options, split),
        **({"splits": BY_FOLDERS} if by_folders else {}),
    }
    return _write(spec, files, split, group_of, record, options)


def _split_by_folders(files: PairedFiles) -> Split | None:
    """The split that folders called train, val and test make; None, with a warning, where they make none."""
    names = sorted({*files.cases, *files.problems})
    parts = {
        part: [n for n in names if files.parts.get(n) == part] for part in ("train", "val", "test")
    }
    found = [part for part, cases in parts.items() if cases]
    if len(found) < 2:
        return None
    outside = [name for name in names if name not in files.parts]
    if outside or not (parts["train"] and parts["test"]):
        missing = f"{len(outside)} of {len(names)} cases lie in neither ({quoted(outside, 3)})"
        if not outside:
            missing = f"there is no {'test' if parts['train'] else 'train'}"
        _warn(
            f"folders called {', '.join(found)} look like a split, but {missing}, so it is not taken: the parts "
            "are mixed. Give --splits FILE with the cases of train and test, or rename the folders"
        )
        return None
    counts = ", ".join(f"{len(parts[part])} cases in {part}" for part in found)
    print(
        f"split as the folders are called: {counts}"
        + (" (those of val choose the checkpoint)" if parts["val"] else "")
        + "; --splits FILE gives another"
    )
    return Split((*parts["train"], *parts["val"]), tuple(parts["test"]), tuple(parts["val"]))


def _refuse_same_names_in_folders(repeated: Sequence[str]) -> None:
    """UserError where several folders hold images and masks, under the same few names in each."""
    folders = {Path(path).parent for path in repeated}
    stems = sorted({Path(path).stem for path in repeated}, key=lambda stem: ("mask" in stem, stem))
    if 1 < len(stems) <= len(folders) and "mask" in stems[-1]:
        raise UserError(
            f"each of {len(folders)} folders holds files named {quoted(stems, 5)}: "
            f"say which are images and which masks, as in --image-suffix {stems[0]} --mask-suffix {stems[1]}"
        )


def _refuse_needless_affixes(of_masks: Affixes, files: PairedFiles, without: PairedFiles) -> None:
    """UserError where `without` affixes of masks more masks have an image than `files` has others."""
    masks = [mask.path for case in without.cases.values() for mask in case.masks]
    if len(masks) > len(set(files.lone_masks) - set(masks)):
        begins = [f"begins with {of_masks.prefix!r}"] if of_masks.prefix else []
        ends = [f"ends in {of_masks.suffix!r}"] if of_masks.suffix else []
        options = " and ".join(["--mask-prefix"] * len(begins) + ["--mask-suffix"] * len(ends))
        raise UserError(
            f"none of the {len(files.problems)} images has a mask whose name {' and '.join(begins + ends)}, but "
            f"{len(masks)} have a mask of their own name, like {masks[0]!r}. Leave out {options}"
        )


def prepare_phantom(root: Path, domain: str, cases: int, seed: int) -> Path:
    """Generate the phantom data set, `phantom` for domain "a" and `phantom-<domain>` for others."""
    from datasets.phantom import SCANNERS

    if domain not in SCANNERS:
        raise UserError(f"--domain {domain}: expected one of {', '.join(SCANNERS)}")
    if cases < 2:
        raise UserError(f"--cases {cases}: expected at least 2")
    spec = spec_for(phantom_name(domain))
    with staged(root, spec.name) as staging:
        staging.begin([f"phantom {domain} {seed} {cases}"])
        tasks = [(staging, index, seed, domain) for index in range(cases)]
        # not forked: OpenCV's threads would be missing in the children, but not their locks
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(available_cores(), spawn, cv2.setNumThreads, (1,)) as pool:
            drawn = pool.map(_write_phantom, tasks, chunksize=4)
            names = list(tqdm(drawn, f"drawing {spec.name}", cases, unit="case", disable=None))
        split = random_split(names, seed)
        record = {"domain": domain, "cases": cases, "seed": seed}
        return staging.finish(split, _manifest(spec, split, record))


def phantom_name(domain: str) -> str:
    return "phantom" if domain == "a" else f"phantom-{domain}"


def _write_phantom(task: tuple[Staging, int, int, str]) -> str:
    from datasets.phantom import phantom_case

    staging, index, seed, domain = task
    case = phantom_case(index, seed=seed, domain=domain)
    staging.write("images", f"{case.name}.png", encode_png(case.image))
    staging.write("masks", f"{case.name}.png", encode_png(case.mask))
    return case.name


def archives_and_metadata(
    spec: DatasetSpec, paths: Sequence[Path]
) -> tuple[list[Path], Path | None]:
    """The zips or folders to read, and the metadata CSV if there is one.

    A folder that holds archives of the data set stands for these archives, any other folder for its
    own content.
    """
    archives: list[Path] = []
    metadata = None
    # a server of research data may give its table of tabs for the CSV that it was given
    table_stems = {Path(name).stem for name in spec.archives if name.endswith(".csv")}
    table_names = [stem + suffix for stem in table_stems for suffix in (*TAB_SUFFIXES, "")]
    for path in paths:
        names = [*spec.archives, *table_names]
        inside = [path / name for name in names if (path / name).is_file()]
        tables = [
            file
            for file in [path, *inside]
            if file.suffix.lower() in (".csv", *TAB_SUFFIXES)
            or (file.name in table_stems and file.is_file())
        ]
        metadata = tables[0] if tables else metadata
        zips = [file for file in inside if file.suffix == ".zip"]
        archives += zips or ([] if path in tables else [path])
    if not archives:
        raise UserError(
            f"nothing to prepare {spec.name} from: give --source with the paths of "
            f"{', '.join(spec.archives)}, or one folder that holds them (from {spec.source})"
        )
    return archives, metadata


def _nothing_found(spec: DatasetSpec, sources: Sequence[Source]) -> str:
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


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _choose_split(
    spec: DatasetSpec,
    files: PairedFiles,
    group_of: Mapping[str, str],
    include_normal: bool,
    options: PreparationOptions,
) -> Split:
    """The split file's cases or 80/20 of all found; by group where groups are known.

    With `test_only` all that were found are for testing.

    Normal cases are in no published split. With `include_normal` they are drawn 80/20 as well.
    """
    normal = {
        name for name in files.cases if spec.normal_prefix and name.startswith(spec.normal_prefix)
    }
    if options.splits is not None:
        split = read_split_for(options.splits, {*files.cases, *files.problems})
        _refuse_other_split(options.splits, split, files)
        more = normal - {*split.train, *split.test}
        if include_normal and len(more) > 1:
            drawn = random_split(sorted(more), options.seed)
            split = Split(split.train + drawn.train, split.test + drawn.test, split.val)
        return split
    left_out = set() if include_normal else normal
    names = sorted({*files.cases, *files.problems} - left_out)
    if options.test_only:
        return Split(train=(), test=tuple(names))
    if len(names) < 2 and files.problems:
        raise UserError(listed_problems(spec.name, files.problems, "remove them there"))
    if group_of:
        # a case that the table does not name is a group of its own
        groups = {name: group_of.get(name, f"case {name}") for name in names}
        return grouped_split(groups, options.seed)
    return random_split(names, options.seed)


def _refuse_other_split(path: Path, split: Split, files: PairedFiles) -> None:
    """UserError where the split file names no case of the source."""
    names, found = {*split.train, *split.test}, {*files.cases, *files.problems}
    if names.isdisjoint(found):
        raise UserError(
            f"none of the {len(names)} cases of {path} is in the source: it names "
            f"{quoted(sorted(names), 3)}, the source has {quoted(sorted(found), 3)}; is it the split "
            "of another data set?"
        )


def split_digest(split: Split) -> str:
    """SHA-256 of the names in order, the same for a pickle and its JSON."""
    parts = [split.train, split.test, *([split.val] if split.val else [])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def file_digest(path: Path | None) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _split_record(options: PreparationOptions, split: Split) -> dict[str, Any]:
    """The manifest's entries on the split: for a split file, of the file as it was given."""
    given = read_split(options.splits, plain_lists=True) if options.splits else split
    origin = options.splits.name if options.splits else "drawn"
    origin = TEST_ONLY if options.test_only else origin
    return {"seed": options.seed, "splits": origin, "splits_sha256": split_digest(given)}


def _manifest(spec: DatasetSpec, split: Split, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": spec.name,
        "title": spec.title,
        "source": spec.source,
        "licence": spec.licence,
        "train": len(split.train),
        "test": len(split.test),
        **record,
    }


def _write(
    spec: DatasetSpec,
    files: PairedFiles,
    split: Split,
    group_of: Mapping[str, str],
    record: Mapping[str, Any],
    options: PreparationOptions,
) -> Path:
    """Write the split's cases; all that are missing or unusable are one error, or are left out."""
    if files.lone_masks:
        _warn(
            f"{len(files.lone_masks)} masks have no image and were left out: "
            f"{quoted(files.lone_masks, 5)}"
        )
    names = [*split.train, *split.test]
    wanted = [files.cases[name] for name in names if name in files.cases]
    problems = {
        name: files.problems.get(name, "not in the source")
        for name in names
        if name not in files.cases
    }
    with staged(options.root, spec.name) as staging:
        plan = [
            line
            for case in wanted
            for line in (case.name, *(file.identity() for file in (case.image, *case.masks)))
        ]
        plan += ["any label"] if spec.any_label else []
        plan += [f"label {spec.labels}"] if spec.labels else []
        plan += [f"window {window_text(spec.window)}"] if spec.window else []
        if staging.begin(plan):
            print(f"resuming in {staging.folder}", file=sys.stderr)
        written = write_cases(spec, wanted, staging, options.limits, problems)
        notes = written.notes
        if problems:
            split = _without(spec, split, problems, options)
            record = {**record, "unusable": len(problems)}
            _warn(
                f"{len(problems)} of {len(names)} cases are unusable and were left out, listed in "
                f"{staging.final / NOTES} with the reasons"
            )
        _check_labels(spec, written.values)
        for kind in (JPEG_CUT, JPEG_LABELS):
            if blurred := sum(note.endswith(kind) for note in notes):
                _warn(f"{blurred} masks are {kind}")
        if odd := [note for note in notes if not note.endswith((JPEG_CUT, JPEG_LABELS))]:
            shown = listed(odd, NOTES_SHOWN, separator="\n  ")
            _warn(f"{len(odd)} odd files, listed in {staging.final / NOTES}:\n  {shown}")
        notes = [f"left out: {case}: {problems[case]}" for case in sorted(problems)] + notes
        if cut := cut_groups_note(spec.name, group_of, split):
            _warn(cut)
            notes = [cut, *notes]
        _report_masks(written.areas, own=not spec.archives)
        left_out = len(files.cases) - len(wanted)
        if left_out:
            print(f"{left_out} cases of the source are not in the split and were left out")
        kept = sorted((*split.train, *split.test))
        groups = {name: group_of[name] for name in kept if name in group_of}
        if groups:
            _report_groups(groups, split, drawn=options.splits is None)
        if options.limits.megapixels != MAX_MEGAPIXELS:
            record = {**record, "max_megapixels": options.limits.megapixels}
        return staging.finish(split, _manifest(spec, split, record), groups, notes)


def _report_groups(group_of: Mapping[str, str], split: Split, drawn: bool) -> None:
    """Say how many groups each part has; of a split that was not given, warn where few are tested on."""
    parts = {"train": split.beside_val, "val": split.val, "test": split.test}
    groups = {part: len(cases_by_group(names, group_of)) for part, names in parts.items() if names}
    line = "groups: " + ", ".join(f"{count} in {part}" for part, count in groups.items())
    if drawn and groups["test"] < FEW_GROUPS:
        _warn(
            f"{line}. Scores on under {FEW_GROUPS} groups (patients, lesions) tell little of others; prepare more "
            "of them, or name more for testing by --splits FILE"
        )
    else:
        print(line)


def _check_labels(spec: DatasetSpec, held: Set[int]) -> None:
    """UserError where no label of `spec` is among the values that masks hold, a warning where not all are."""
    missing = [label for label in spec.labels if label not in held]
    if not missing:
        return
    several = len(missing) > 1
    which = f"label{'s' if several else ''} {', '.join(map(str, missing))} occur{'' if several else 's'}"
    found = f"{which} in no mask; they hold {listed(map(str, sorted(held)), 20)}"
    if len(missing) == len(spec.labels):
        raise UserError(
            f"{spec.name} is not prepared: {found}. Give --label with values that are foreground"
        )
    _warn(found)


def _report_masks(areas: Sequence[float], own: bool) -> None:
    """Say how many masks are empty and how large they are; of own data, warn where that is odd."""
    empty, median = sum(area == 0 for area in areas), float(np.median(areas))
    line = (
        f"masks: {empty} of {len(areas)} empty; median foreground {100 * median:.1f} % of the image"
    )
    if own and empty > len(areas) / 2:
        _warn(f"{line}. Are these the masks of the images?")
    elif own and median > 0.5:
        _warn(f"{line}. Are the masks inverted? The brighter part is taken for foreground")
    else:
        print(line)


def _without(
    spec: DatasetSpec, split: Split, problems: Mapping[str, str], options: PreparationOptions
) -> Split:
    """The split without its unusable cases; UserError where these are not skipped, or a part has no other."""
    other_way = "take them out of the split file" if options.splits else "remove them there"
    if not options.skip_unusable:
        other_way += " (--skip-unusable leaves them out)"
        raise UserError(listed_problems(spec.name, problems, other_way))
    parts = {"train": split.train, "test": split.test, "val": split.val}
    kept = {part: tuple(n for n in names if n not in problems) for part, names in parts.items()}
    left = Split(**kept)
    for part, names in parts.items():
        if names and not (left.beside_val if part == "train" else kept[part]):
            what = listed_problems(spec.name, problems, other_way)
            raise UserError(f"no {part} case is usable. {what}")
    return left
