"""What every entry point shares: its exit, and checks of its arguments.

A user's problem ends in one line, only a bug in a traceback.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from utils.errors import UserError
from utils.interruption import Interrupted


def exit_from(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and exit: its return value, 2 after a UserError, 128 + n after signal n."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        if os.environ.get("RANK", "0") == "0":  # once for the processes of a launcher
            with suppress(OSError):  # the terminal may be gone
                print(f"{stopped}; {stopped.advice}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def described_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose --help opens with `description`, as it is laid out."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def accept_negative_values(parser: argparse.ArgumentParser) -> None:
    """Let values of options begin with a minus, as in `--window -160,240`, which is refused otherwise."""
    parser._negative_number_matcher = re.compile(r"-\.?\d")


def positive_int(text: str) -> int:
    """Type of an argument that counts something of which there is at least one."""
    return _int_from(1, text)


def non_negative_int(text: str) -> int:
    """Type of an argument such as a seed, which may be 0."""
    return _int_from(0, text)


def _int_from(least: int, text: str) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"expected at least {least}, got {number}")
    return number


def check_values(parser: argparse.ArgumentParser, *checks: tuple[str, bool, str]) -> None:
    """Exit with the usage for the first check (option, whether it holds, what it must be) that fails."""
    for option, holds, expected in checks:
        if not holds:
            parser.error(f"--{option} must be {expected}")
