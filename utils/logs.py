"""Where the project's log lines go."""

from __future__ import annotations

import logging
import sys
from pathlib import Path


def log_to(file: Path | None = None, level: int = logging.INFO) -> None:
    """Send the project's log lines to the terminal and, if given, append them to a file."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    handlers[0].setFormatter(logging.Formatter("%(message)s"))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file))
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # a full disk is reported where the state is saved, not here too
    logging.raiseExceptions = False
    logging.basicConfig(level=level, handlers=handlers, force=True)
    for noisy in ("matplotlib", "PIL", "httpx", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
