"""Whether this Python has what requirements files ask for: exit code 0 or 1.

python utils/requirements.py requirements.txt [...]
"""

import sys
from importlib import metadata
from pathlib import Path


def lines_of(path: Path) -> list[str]:
    """The requirements in a file and in those that it includes by `-r`, without comments."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip()
        if text.startswith("-r "):
            lines += lines_of(path.parent / text[3:].strip())
        elif text:
            lines.append(text)
    return lines


def unsatisfied(lines: list[str]) -> list[str]:
    """The requirements (`name` with version bounds) that are not installed."""
    from packaging.requirements import Requirement

    missing = []
    for text in lines:
        requirement = Requirement(text)
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(text)
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            missing.append(text)
    return missing


if __name__ == "__main__":
    found = unsatisfied([line for file in sys.argv[1:] for line in lines_of(Path(file))])
    print("\n".join(found), file=sys.stderr)
    sys.exit(bool(found))
