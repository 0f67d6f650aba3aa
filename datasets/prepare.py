"""Prepare data sets: from the archives at their sources to images, masks and a split.

    python -m datasets.prepare --list
    python -m datasets.prepare busi --source Dataset_BUSI_with_GT.zip --splits busi_names.pkl
    python -m datasets.prepare phantom
    python -m datasets.prepare my-set --images DIR --masks DIR --mask-suffix _mask
    python -m datasets.prepare --check busi

writes `datasets/<name>/{images,masks}/`, `<name>_train_test_names.json` and `dataset.json`. Images
are copied byte for byte, masks become PNG files of 0 and 255. An interrupted run is resumed by the
same command. See docs/datasets.md.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.catalogue import CATALOGUE, DatasetSpec, spec_for
from datasets.image_files.windowing import parse_window, window_text
from datasets.preparation.archives import DEFAULT_LIMITS
from datasets.preparation.layouts import Affixes
from datasets.preparation.notes import warn
from datasets.preparation.options import PreparationOptions
from datasets.preparation.phantoms import PHANTOM_CASES, phantom_name, prepare_phantom
from datasets.preparation.split_choice import TEST_ONLY, split_digest
from datasets.preparation.steps import (
    archives_and_metadata,
    file_digest,
    found_in,
    prepare_own,
    prepare_published,
)
from datasets.prepared import FOUND, is_prepared, read_manifest
from datasets.splits import SEED, read_split
from utils.data_set_names import canonical_name
from utils.entry import ArgumentParser, accept_negative_values, exit_from, non_negative_int
from utils.errors import UserError
from utils.interruption import Interrupted

OPTIONS = {
    "generated": {"cases", "domain", "seed"},
    "published": {"source", "splits", "test_only", "groups", "seed", "skip_unusable"},
    "your own": {
        "images",
        "masks",
        "image_prefix",
        "image_suffix",
        "mask_prefix",
        "mask_suffix",
        "any_label",
        "label",
        "window",
        "splits",
        "groups",
        "seed",
        "test_only",
        "skip_unusable",
    },
}
"""The options that each kind of data set takes, beside those for all."""


def catalogue_table() -> str:
    """Each data set with its source, licence, archives and published counts."""
    blocks = []
    for spec in CATALOGUE.values():
        lines = [
            f"{spec.name}: {spec.title}",
            f"  source    {spec.source}",
            f"  licence   {spec.licence}",
            f"  archives  {', '.join(spec.archives) or 'none, it is generated'}",
            f"  expected  {spec.train} train, {spec.test} test",
        ]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


class _Once(argparse.Action):
    """Stores an option's value, and refuses a second one, which would silently replace the first."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) != self.default:
            raise argparse.ArgumentError(
                self,
                "given twice; give it once (files of several folders: one folder with subfolders)",
            )
        setattr(namespace, self.dest, values)


def parser() -> argparse.ArgumentParser:
    arguments = ArgumentParser(
        prog="python -m datasets.prepare",
        description="Prepare a data set for training. Sources, licences and layouts: --list.",
    )
    arguments.register("action", None, _Once)
    add = arguments.add_argument
    add("name", nargs="?", help="a name from --list, or any other for your own data")
    add("--list", action="store_true", help="list the known data sets and exit")
    add("--check", action="store_true", help="check a prepared set for near-duplicates and leaks")
    add("--group-split", action="store_true", help="write a split that no group of cases crosses")
    add("--root", type=Path, default=Path("datasets"), help="where prepared data lies [datasets]")
    add("--source", type=Path, nargs="+", default=[], metavar="PATH", help="zip files or folders")
    split = arguments.add_mutually_exclusive_group().add_argument
    split(
        "--splits",
        type=Path,
        metavar="FILE",
        help="split file, .pkl, .json or .csv [80/20 by --seed]",
    )
    split("--test-only", action="store_true", help="all cases are for testing, none for training")
    add("--seed", type=non_negative_int, metavar="N", help=f"of split and phantom [{SEED}]")
    add("--include-normal", action="store_true", help="busi: keep the images without lesion")
    add("--images", type=Path, metavar="DIR", help="own data: folder or zip of images")
    add("--masks", type=Path, metavar="DIR", help="own data: folder or zip of masks")
    add("--image-prefix", default="", metavar="S", help="own data: S<name>.* is an image")
    add("--image-suffix", default="", metavar="S", help="own data: <name>S.* is an image")
    add("--mask-prefix", default="", metavar="S", help="own data: S<name>.* is a mask")
    add("--mask-suffix", default="", metavar="S", help="own data: <name>S.* is a mask")
    accept_negative_values(arguments)
    add(
        "--window",
        metavar="LOW,HIGH",
        type=parse_window,
        help="own data: values of 16 bits and DICOM that become black and white; auto: each image's own",
    )
    values = arguments.add_mutually_exclusive_group().add_argument
    values("--any-label", action="store_true", help="own data: any value above 0 is foreground")
    values("--label", type=_labels, default=(), metavar="N,N", help="own data: these values are")
    add("--groups", type=Path, metavar="CSV", help="case name, group (patient, lesion, ...)")
    add("--skip-unusable", action="store_true", help="leave out cases that cannot be used")
    add("--cases", type=int, metavar="N", help=f"phantom: number of cases [{PHANTOM_CASES}]")
    add("--domain", help="phantom: scanner, a or b [a]")
    add("--follow-links", action="store_true", help="follow symbolic links in folders")
    add("--limit", action="append", default=[], metavar="NAME=N", help="see docs/datasets.md")
    return arguments


def _labels(text: str) -> tuple[int, ...]:
    """The values of `--label`."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) < 1 << 16 for part in parts):
        raise argparse.ArgumentTypeError(
            f"expected values of the masks, 1 to 65535, separated by commas, as in 1,2; got {text!r}"
        )
    labels = [int(part) for part in parts]
    if 0 in labels or len(set(labels)) < len(labels):
        raise argparse.ArgumentTypeError(
            f"expected different values above 0, which is background, as in 1,2; got {text!r} (a colour is named "
            "by its grey value, as in 76 for red of 255,0,0; the message on masks without --label tells it)"
        )
    return tuple(sorted(labels))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks; UserError if it cannot be done."""
    if arguments.list:
        print(catalogue_table())
        return
    if arguments.name is None:
        raise UserError("which data set? Give a name; --list shows those that are known")
    domain = _phantom_domain(arguments)
    name = phantom_name(domain) if domain else canonical_name(arguments.name)
    spec = spec_for(name)
    folder = arguments.root / name
    if arguments.check or arguments.group_split:
        given = arguments.root / arguments.name  # may be another name of the data set
        _check(given if given.is_dir() and not folder.is_dir() else folder, arguments)
        return
    _refuse_name(name)
    kind = "generated" if domain else "published" if spec.archives else "your own"
    _refuse_options_of_others(name, kind, arguments)
    if was_complete := is_prepared(folder, _asked_for(spec, arguments)):
        _refuse_other_files(spec, folder, arguments)
    else:
        _prepare(name, spec, domain, arguments)
    if manifest := read_manifest(folder):
        print(
            f"{folder} is complete: {manifest['train']} train and {manifest['test']} test cases"
            + ("; it was so already, and nothing was done" if was_complete else "")
        )


def _refuse_name(name: str) -> None:
    """UserError for a name that means something else."""
    if name.lower() == "own":
        reason = "sh train.sh own would take configs/own_train.yaml, which stands for all data of one's own"
    elif name.endswith("_grouped"):
        reason = "so are called the splits that --group-split writes"
    elif (Path(__file__).parent / name / "__init__.py").is_file():
        reason = f"datasets/{name} is a folder of the code"
    else:
        return
    raise UserError(f"{name!r} is no name for a data set: {reason}; choose another name")


def _phantom_domain(arguments: argparse.Namespace) -> str | None:
    """The scanner of the phantom that is asked for, None where another data set is.

    UserError where name and `--domain` contradict each other.
    """
    name = canonical_name(arguments.name)
    if name != "phantom" and not name.startswith("phantom-"):
        return None
    named = name.removeprefix("phantom").removeprefix("-")
    if named and arguments.domain and arguments.domain != named:
        raise UserError(
            f"{arguments.name} is the phantom of --domain {named}, but --domain {arguments.domain} was given: "
            f"leave it out, or prepare {phantom_name(arguments.domain)}"
        )
    return arguments.domain or named or "a"


def _seed(arguments: argparse.Namespace) -> int:
    return SEED if arguments.seed is None else arguments.seed


def _asked_for(spec: DatasetSpec, arguments: argparse.Namespace) -> dict[str, Any]:
    """The manifest's entries that the command line fixes, None for those that it leaves open."""
    return {
        "seed": arguments.seed,
        "cases": arguments.cases,
        "include_normal": arguments.include_normal or None,
        "splits": TEST_ONLY if arguments.test_only else None,
        "splits_sha256": split_digest(read_split(arguments.splits, plain_lists=True))
        if arguments.splits
        else None,
        "groups_sha256": file_digest(arguments.groups),
        "sources": [path.name for path in _sources(spec, arguments)] or None,
        **_asked_reading(arguments),
    }


def _prepare(
    name: str, spec: DatasetSpec, domain: str | None, arguments: argparse.Namespace
) -> None:
    """Prepare the phantom of `domain`, a published data set or the user's own."""
    options = _options(arguments)
    if domain:
        cases = PHANTOM_CASES if arguments.cases is None else arguments.cases
        prepare_phantom(options.root, domain, cases, options.seed)
    elif name in CATALOGUE:
        prepare_published(spec, arguments.source, options, arguments.include_normal)
    elif arguments.images and arguments.masks:
        image_affixes = Affixes(arguments.image_prefix, arguments.image_suffix)
        mask_affixes = Affixes(arguments.mask_prefix, arguments.mask_suffix)
        spec = replace(
            spec,
            any_label=arguments.any_label,
            labels=arguments.label,
            window=arguments.window,
        )
        prepare_own(spec, arguments.images, arguments.masks, options, image_affixes, mask_affixes)
    else:
        raise UserError(
            f"{name!r} is not in the catalogue ({', '.join(CATALOGUE)}). "
            "For your own data give --images DIR and --masks DIR"
        )


def _options(arguments: argparse.Namespace) -> PreparationOptions:
    return PreparationOptions(
        root=arguments.root,
        splits=arguments.splits,
        groups=arguments.groups,
        seed=_seed(arguments),
        limits=DEFAULT_LIMITS.changed(arguments.limit),
        follow_links=arguments.follow_links,
        test_only=arguments.test_only,
        skip_unusable=arguments.skip_unusable,
    )


def _refuse_options_of_others(name: str, kind: str, arguments: argparse.Namespace) -> None:
    """UserError for an option that this kind of data set would ignore."""
    takes = OPTIONS[kind] | ({"include_normal"} if name == "busi" else set())
    options = set().union(*OPTIONS.values(), {"include_normal"}) - takes
    given = sorted(option for option in options if getattr(arguments, option))
    if given:
        raise UserError(
            f"{name!r} is {kind} data (--list shows the published), so it has no use for {', '.join(map(_flag, given))}; it takes "
            f"{', '.join(map(_flag, sorted(takes)))}"
        )


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _sources(spec: DatasetSpec, arguments: argparse.Namespace) -> list[Path]:
    """The sources on the command line, without a metadata CSV; [] where it names none."""
    if spec.archives and arguments.source:
        return archives_and_metadata(spec, arguments.source)[0]
    return [arguments.images, arguments.masks] if arguments.images and arguments.masks else []


def _refuse_other_files(spec: DatasetSpec, folder: Path, arguments: argparse.Namespace) -> None:
    """UserError where the sources on the command line are not what `folder` was prepared from.

    By the number and size of their files, which sets that were prepared by earlier versions do not record.
    A source may be gone by now; of own data this is a warning, as its path may be another one.
    """
    for path in (arguments.images, arguments.masks):
        if path and not path.exists():
            warn(f"{path} is not there, so that {folder} was not compared with it")
    sources = _sources(spec, arguments)
    if sources and all(s.exists() for s in sources) and FOUND in (read_manifest(folder) or {}):
        options = _options(arguments)
        is_prepared(folder, {FOUND: found_in([options.open(path) for path in sources])})


def _asked_reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """The manifest's entries for names and labels; without the folders, an empty one leaves it open."""
    affixes = ("image_prefix", "image_suffix", "mask_prefix", "mask_suffix")
    values = {key: getattr(arguments, key) for key in (*affixes, "any_label")}
    values |= {"label": list(arguments.label), "window": window_text(arguments.window)}
    named = arguments.images and arguments.masks
    return {key: value for key, value in values.items() if named or value}


def _check(folder: Path, arguments: argparse.Namespace) -> None:
    from datasets.cases import own_split_file
    from datasets.checks.integrity import check_data_set
    from datasets.checks.leaks import write_group_split
    from datasets.checks.report import format_report

    if arguments.check:
        print(format_report(check_data_set(folder)))
        print(f"written to {folder / 'check'}")
    if arguments.group_split:
        print(f"written {write_group_split(folder, _seed(arguments))}")
        if held := read_split(own_split_file(folder)).val:
            print(
                f"the {len(held)} val cases were drawn like the others, and the new split names no val: "
                "val_fraction applies"
            )


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    try:
        run(arguments)
    except OSError as error:  # a full disk, a folder that is not writable
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT) from None


if __name__ == "__main__":
    exit_from(main)
