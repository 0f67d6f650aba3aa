"""The steps of preparing a data set from files: find its cases, choose a split, write both."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.catalogue import IMAGE_SUFFIXES, DatasetSpec
from datasets.image_files.decoding import MAX_MEGAPIXELS
from datasets.image_files.pictures import READ_SUFFIXES
from datasets.image_files.windowing import window_text
from datasets.preparation.archives import Limits, Source, members
from datasets.preparation.group_tables import (
    TAB_SUFFIXES,
    check_groups,
    cut_groups_note,
    read_group_table,
)
from datasets.preparation.layouts import (
    NO_AFFIXES,
    Affixes,
    PairedFiles,
    SourceCase,
    own_cases,
    published_cases,
)
from datasets.preparation.notes import (
    check_labels,
    refuse_background_of_one,
    report_groups,
    report_masks,
    warn,
    warn_of_odd_files,
)
from datasets.preparation.options import PreparationOptions
from datasets.preparation.source_problems import nothing_found, refuse_unpaired, refuse_unread
from datasets.preparation.split_choice import (
    BY_FOLDERS,
    BY_NAMES,
    DRAWN,
    choose_split,
    split_by_folders,
    split_by_names,
    split_record,
    without_unusable,
)
from datasets.preparation.staging import staged
from datasets.preparation.writing import write_cases
from datasets.prepared import FOUND, NOTES
from datasets.splits import Split, quoted
from utils.errors import UserError
from utils.files import sha256


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
        raise UserError(nothing_found(spec, sources))
    table = options.groups or metadata
    group_of = read_group_table(table, spec.group_columns, or_first_two=options.groups is not None)
    by_names = None if options.give_a_split else split_by_names(spec, files)
    split = by_names or choose_split(spec, files, group_of, include_normal, options)
    check_groups(table, group_of, split)
    if spec.group_columns and table is None and not options.test_only:
        warn(
            f"no metadata CSV among the sources, so images of one {spec.group_columns[1]} may lie "
            f"in both train and test, and --check cannot tell; give {spec.archives[-1]} to --source as well"
        )
    record = {
        "sources": [path.name for path in paths],
        FOUND: found_in(sources),
        "include_normal": include_normal,
        "groups_sha256": file_digest(table),
        **split_record(options, split, BY_NAMES if by_names else DRAWN),
    }
    return _write(spec, files, split, group_of, record, options)


def prepare_own(
    spec: DatasetSpec,
    images: Path,
    masks: Path,
    options: PreparationOptions,
    image_affixes: Affixes = NO_AFFIXES,
    mask_affixes: Affixes = NO_AFFIXES,
) -> Path:
    """Prepare any other data set from a folder or zip of images and one of masks.

    Both are named `<prefix><name><suffix>.*`, image and mask each with its own affixes. With `any_label` in
    `spec`, any value above 0 is foreground, with `labels` these values are. Otherwise as `prepare_published`.
    """
    image_source, mask_source = options.open(images), options.open(masks)
    files = own_cases(members([image_source]), members([mask_source]), image_affixes, mask_affixes)
    refuse_unread(image_source, mask_source)
    if not files.cases and not files.problems:
        raise UserError(
            f"no images named {image_affixes.prefix}*{image_affixes.suffix} in {images}; "
            f"expected files ending in {', '.join(IMAGE_SUFFIXES)}"
        )
    refuse_unpaired(spec, files, image_source, mask_source, image_affixes, mask_affixes)
    if files.by_folder:
        print(
            f"images repeat a name, so cases are named by their folders: {quoted(sorted(files.cases), 3)}"
            + ("" if options.groups else "; where folders are patients, give --groups")
        )
    group_of = read_group_table(options.groups, None, case_of_path=files.case_of_path)
    by_folders = None if options.give_a_split else split_by_folders(files)
    split = by_folders or choose_split(spec, files, group_of, True, options)
    check_groups(options.groups, group_of, split)
    record = {
        "sources": [images.name, masks.name],
        FOUND: found_in([image_source, mask_source]),
        "image_prefix": image_affixes.prefix,
        "image_suffix": image_affixes.suffix,
        "mask_prefix": mask_affixes.prefix,
        "mask_suffix": mask_affixes.suffix,
        "any_label": spec.any_label,
        "label": list(spec.labels),
        "window": window_text(spec.window),
        "groups_sha256": file_digest(options.groups),
        **split_record(options, split, BY_FOLDERS if by_folders else DRAWN),
    }
    return _write(spec, files, split, group_of, record, options)


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
        inside = _present(path, [*spec.archives, *table_names]) or _present(path, spec.also_called)
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


def _present(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of these names that the folder holds."""
    return [folder / name for name in names if (folder / name).is_file()]


def found_in(sources: Sequence[Source]) -> list[str]:
    """How many files that may be images or masks each source holds, and of how many bytes together."""
    found = []
    for source in sources:
        sizes = [file.size() for file in members([source]) if file.suffix in READ_SUFFIXES]
        found.append(f"{len(sizes)} files of {sum(sizes):,} bytes")
    return found


def file_digest(path: Path | None) -> str | None:
    """SHA-256 of a file that is given; UserError where it cannot be read."""
    try:
        return sha256(path) if path else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def manifest_of(spec: DatasetSpec, split: Split, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": spec.name,
        "title": spec.title,
        "source": spec.source,
        "licence": spec.licence,
        "train": len(split.train),
        "test": len(split.test),
        **record,
    }


def _plan(spec: DatasetSpec, cases: Sequence[SourceCase], limits: Limits) -> list[str]:
    """Lines that are the same where the same cases are prepared in the same way."""
    plan = [
        line
        for case in cases
        for line in (case.name, *(file.identity() for file in (case.image, *case.masks)))
    ]
    plan += [f"megapixels {limits.megapixels}"]
    plan += ["any label"] if spec.any_label else []
    plan += [f"label {spec.labels}"] if spec.labels else []
    plan += [f"window {window_text(spec.window)}"] if spec.window else []
    return plan


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
        warn(
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
        if staging.begin(_plan(spec, wanted, options.limits)):
            print(f"resuming in {staging.folder}", file=sys.stderr)
        written = write_cases(spec, wanted, staging, options.limits, problems)
        if problems:
            split = without_unusable(spec, split, problems, options)
            record = {**record, "unusable": len(problems)}
            warn(
                f"{len(problems)} of {len(names)} cases are unusable and were left out, listed in "
                f"{staging.final / NOTES} with the reasons"
            )
        check_labels(spec, written.values)
        refuse_background_of_one(spec, written.ranges)
        warn_of_odd_files(written.notes, staging.final / NOTES)
        notes = [f"left out: {case}: {problems[case]}" for case in sorted(problems)]
        notes += written.notes
        if cut := cut_groups_note(spec.name, group_of, split):
            warn(cut)
            notes.insert(0, cut)
        report_masks(written.areas, own=not spec.archives)
        if unwanted := len(files.cases) - len(wanted):
            print(f"{unwanted} cases of the source are not in the split and were left out")
        kept = sorted((*split.train, *split.test))
        groups = {name: group_of[name] for name in kept if name in group_of}
        if groups:
            report_groups(groups, split, drawn=options.splits is None)
        if options.limits.megapixels != MAX_MEGAPIXELS:
            record = {**record, "max_megapixels": options.limits.megapixels}
        return staging.finish(split, manifest_of(spec, split, record), groups, notes)
