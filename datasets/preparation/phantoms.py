"""The phantom as a prepared data set: its cases drawn, written and split."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
from tqdm import tqdm

from datasets.catalogue import spec_for
from datasets.phantom import SCANNERS, phantom_case
from datasets.preparation.staging import Staging, staged
from datasets.preparation.steps import manifest_of
from datasets.splits import random_split
from utils.errors import UserError
from utils.images import encode_png
from utils.machine import available_cores

PHANTOM_CASES = 400


def prepare_phantom(root: Path, domain: str, cases: int, seed: int) -> Path:
    """Generate the phantom data set, `phantom` for domain "a" and `phantom-<domain>` for others."""
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
        return staging.finish(split, manifest_of(spec, split, record))


def phantom_name(domain: str) -> str:
    return "phantom" if domain == "a" else f"phantom-{domain}"


def _write_phantom(task: tuple[Staging, int, int, str]) -> str:
    staging, index, seed, domain = task
    case = phantom_case(index, seed=seed, domain=domain)
    staging.write("images", f"{case.name}.png", encode_png(case.image))
    staging.write("masks", f"{case.name}.png", encode_png(case.mask))
    return case.name
