"""How every entry point exits: one line for the user's problems, a traceback only for bugs."""

from __future__ import annotations

import sys
from collections.abc import Callable
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
        print(f"{stopped}; the same command resumes from here", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
