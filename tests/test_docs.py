"""README and docs: their links lead somewhere, and their commands are ones that exist."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = (
    "benchmarks",
    "configs",
    "datasets",
    "distillation",
    "engine",
    "experiments",
    "models",
    "scoring",
    "tests",
    "utils",
)
CARDS = sorted((ROOT / "ckpt" / "provided_models").glob("*/README.md"))
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "ckpt" / "tiny_vae" / "README.md",
    *CARDS,
]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(page: Path) -> list[list[str]]:
    """Every `python ...` line of the page's blocks, as words."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`(python [^`\n]+)`", page.read_text()) if page in CARDS else []
    blocks = spans + [content for language, content in fenced if language != "python"]
    lines = re.sub(r"\\\n\s*", " ", "\n".join(blocks)).splitlines()
    found = [line.removeprefix("$ ").strip() for line in lines]
    return [shlex.split(line, comments=True) for line in found if line.startswith("python ")]


def source(words: list[str]) -> Path | None:
    """The file in this repository that the command runs; None for a module from elsewhere."""
    if words[1] == "-m":
        path = ROOT / (words[2].replace(".", "/") + ".py")
        return path if (ROOT / words[2].split(".")[0]).is_dir() else None
    return ROOT / words[1] if words[1].endswith(".py") else None


@functools.cache
def help_of(*command: str) -> str:
    run = [sys.executable, *command, "--help"]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page: Path) -> None:
    for words in commands(page):
        file = source(words)
        if file is None:
            continue
        assert file.is_file(), f"{page.name}: {' '.join(words)}"
        command = words[1:3] if words[1] == "-m" else words[1:2]
        if file.name == "predict.py":
            assert "--out" in words, f"{page.name}: {' '.join(words)} does not say where to"
        for word in words[len(command) + 1 :]:
            flag = word.partition("=")[0]
            if flag.startswith("--"):
                known = re.findall(r"--[a-z0-9-]+", help_of(*command))
                assert flag in known, f"{page.name}: {' '.join(command)} has no {flag}"
            if word.startswith("configs/"):
                assert (ROOT / word).is_file(), f"{page.name}: there is no {word}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tests_and_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for file, name in re.findall(r"(test_\w+\.py)(?:::(\w+))?", text):
        content = (ROOT / "tests" / file).read_text()
        assert f"def {name}(" in content or not name, f"{page.name}: {file} has no {name}"
    for path in re.findall(rf"`((?:{'|'.join(CODE)})/[\w/]+\.\w+)`", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_commands_are_found() -> None:
    assert any(words[1] == "train.py" for words in commands(ROOT / "README.md"))
    assert any(words[1] == "-m" for words in commands(ROOT / "README.md"))
    assert len(commands(ROOT / "docs" / "predict.md")) == 9


@pytest.mark.parametrize("table", sorted((ROOT / "docs" / "results").glob("*/results.md")), ids=str)
def test_results_are_those_of_the_studies(table: Path) -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    blocks = table.read_text().strip().split("\n\n")
    shown = [block for block in blocks if block.startswith(("**", "|"))]
    assert len(shown) > 1
    for block in shown:  # the notes below the tables stand in the page once
        assert f"\n\n{block}\n\n" in page
