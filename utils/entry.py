"""What every entry point shares: its exit, and checks of its arguments.

A user's problem ends in one line, only a bug in a traceback.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any, NoReturn

from utils.errors import UserError
from utils.interruption import Interrupted, leaving_in_order


def exit_from(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and exit: its return value, 2 after a UserError, 128 + n after signal n."""
    for stream in (sys.stdout, sys.stderr):
        # a terminal may lack letters of a name, or arrows; other handlers than strict never fail
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    launched = "RANK" in os.environ  # no handler runs while such a process waits for another one
    try:
        with nullcontext() if launched else leaving_in_order():
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


class ArgumentParser(argparse.ArgumentParser):
    """Says what may have been meant by an unknown option, in place of the usage."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = self._given or list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        _, unknown, words = message.partition("unrecognized arguments: ")
        if not unknown:
            super().error(message)
        hints = dict.fromkeys(filter(None, map(self._meant_by, words.split())))
        asked = "".join(f"; {hint}" for hint in hints)
        self.exit(2, f"{self.prog}: error: {message}{asked}; --help lists the options\n")

    def _meant_by(self, word: str) -> str:
        """What to write in place of an unknown option; '' where nothing is like it."""
        option, _, value = word.partition("=")
        if not option.startswith("--"):
            return ""
        takes = {action.dest for action in self._actions} & {"overrides", "set"}
        if takes and (setting := self._setting(option, value)):
            return f"write {'' if 'overrides' in takes else '--set '}{setting}"
        close = difflib.get_close_matches(option, self._option_string_actions, n=1)
        return f"did you mean {close[0]}?" if close else ""

    def _setting(self, option: str, value: str) -> str:
        """`key=value` where the option is called as a key of the config, or as it is elsewhere; else ''."""
        from utils.config import Config
        from utils.config_problems import OTHER_NAMES, WITH_OTHER_VALUES

        name = option.removeprefix("--").replace("-", "_")
        key = OTHER_NAMES.get(name, name)
        if key not in Config.model_fields:
            return ""
        if key != name and key in WITH_OTHER_VALUES:
            return f"{key}=..., whose values docs/config.md lists"
        if not value and option in self._given:
            value = next(iter(self._given[self._given.index(option) + 1 :]), "-")
            value = "true" if value.startswith("-") or "=" in value else value
        return f"{key}={value}"


def described_parser(description: str | None) -> ArgumentParser:
    """A parser whose --help opens with `description`, as it is laid out."""
    return ArgumentParser(
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
