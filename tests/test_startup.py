"""Entry points answer `--help` without importing what is slow to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

COMMANDS = ("experiments.cross_domain", "experiments.cross_validation")
"""Those that are run with `python -m`."""

# One process for all: what one of them imports, the next would be blamed for no longer.
ASK_EACH = """
import importlib, sys
for name in sys.argv[1:]:
    sys.argv = [f"{name}.py", "--help"]
    try:
        importlib.import_module(name).main()
    except SystemExit as stop:
        assert not stop.code, name
    slow = {"torch", "torchvision", "diffusers", "accelerate", "cv2", "scipy", "matplotlib"}
    assert not slow & sys.modules.keys(), (name, slow & sys.modules.keys())
"""


def test_help_imports_nothing_heavy() -> None:
    entry_points = sorted(
        path.stem for path in ROOT.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
    )
    assert {"train", "valid", "predict", "benchmark"} <= set(entry_points)
    entry_points += COMMANDS
    result = subprocess.run(
        [sys.executable, "-c", ASK_EACH, *entry_points],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for name in entry_points:
        assert f"usage: {name}.py" in result.stdout
