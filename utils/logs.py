"""Where the project's log lines go."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from utils.errors import UserError
from utils.interruption import Interrupted

log = logging.getLogger("wavegms")


class _Plain(logging.Formatter):
    """The message alone, after `warning: ` where it is one."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"warning: {text}" if record.levelno == logging.WARNING else text


def log_to(file: Path | None = None, level: int = logging.INFO) -> None:
    """Send the project's log lines to the terminal and, if given, append them to a file."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    handlers[0].setFormatter(_Plain("%(message)s"))
    handlers[0].addFilter(lambda record: not hasattr(record, "file_only"))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # a full disk is reported where the state is saved, not here too
    logging.raiseExceptions = False
    logging.basicConfig(level=level, handlers=handlers, force=True)
    for noisy in ("matplotlib", "fontTools", "PIL", "httpx", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def log_end(error: BaseException) -> None:
    """Note in the log file, where there is one, what ended the program; `exit_from` tells the terminal."""
    file_only = {"file_only": True}
    if isinstance(error, Interrupted):
        log.info("%s; %s", error, error.advice, extra=file_only)
    elif isinstance(error, KeyboardInterrupt):
        log.info("stopped by SIGINT", extra=file_only)
    elif isinstance(error, SystemExit):
        log.info("stopped, exit code %s", error.code, extra=file_only)
    elif isinstance(error, UserError):
        log.error("%s", error, extra=file_only)
    else:
        log.error("ended by an error", exc_info=error, extra=file_only)
