"""A function of the user's own, named in a config as `package.module:function`.

Options follow as in `package.module:function?width=32&depth=3`, each value written as in YAML. Naming it
imports the module and calls the function: it is the one way in which a config runs code.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from utils.errors import UserError
from utils.yaml_files import parse_yaml, shown

_NAME = r"[^\W\d]\w*"
_OPTION = rf"{_NAME}=[^&#|\s]+"
OWN_FUNCTION = rf"{_NAME}(\.{_NAME})*:{_NAME}(\?{_OPTION}(&{_OPTION})*)?"
"""Pattern of how a config names one."""

EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""Numbers as 1e-3, which are text in YAML 1.1."""


class OwnFunction:
    """The function that `spec`, the value of the config's `key`, names, with its options.

    Attributes:
        file: where it was found.

    Raises:
        UserError: there is no such module or function, or the options are not plain values.
    """

    def __init__(self, key: str, spec: str) -> None:
        self._where = f"{key} {spec!r}"
        self.name, _, query = spec.partition("?")
        self._options = _read_options(self._where, query)
        self._function, self.file = _import(self._where, self.name)

    def call_text(self, **given: object) -> str:
        """How it is called, for messages."""
        arguments = given | self._options
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"

    def __call__(self, **given: object) -> Any:
        """What it returns for `given` and its options; errors within the user's code are left as they are.

        Raises UserError where it cannot be called so, or does not take an option.
        """
        if twice := given.keys() & self._options.keys():
            raise UserError(
                f"{self._where}: {', '.join(sorted(twice))} cannot be an option, since the function is given it "
                "anyway: leave it out (image_size is a key of the config)"
            )
        arguments = given | self._options
        try:
            signature = inspect.signature(self._function)
            self._check_options(signature, given)
            signature.bind(**arguments)
        except TypeError as error:
            raise UserError(
                f"{self.call_text(**given)}: the function cannot be called so, {error}"
            ) from error
        except ValueError:
            pass  # written in C, it has no signature to read
        return self._function(**arguments)

    def _check_options(self, signature: inspect.Signature, given: Iterable[str]) -> None:
        """UserError for an option that a function of this signature does not take."""
        kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
        if inspect.Parameter.VAR_KEYWORD in kinds.values():
            return
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        known = [name for name, kind in kinds.items() if kind in by_name and name not in given]
        for option in self._options:
            if option not in known:
                close = get_close_matches(option, known, n=1)
                takes = f"it takes {', '.join(known) or 'none'}"
                hint = f"did you mean {close[0]!r}?" if close else takes
                raise UserError(f"{self._where}: the function has no option {option!r}; {hint}")


def _read_options(where: str, query: str) -> dict[str, str | float | bool | None]:
    """The options in `name=value&name=value`; UserError where one is given twice or is no plain value."""
    options: dict[str, str | float | bool | None] = {}
    for option in query.split("&") if query else ():
        name, _, text = option.partition("=")
        if name in options:
            raise UserError(f"{where}: the option {name!r} is given twice; leave one out")
        value = float(text) if EXPONENT.fullmatch(text) else parse_yaml(text, where)
        if value is not None and not isinstance(value, (str, int, float)):
            raise UserError(
                f"{where}: the option {name!r} is {shown(value)}, expected a number, a word, true, false or "
                "null; quote text that YAML takes for something else"
            )
        options[name] = value
    return options


def _import(where: str, name: str) -> tuple[Callable[..., Any], str | None]:
    """The function named `package.module:function`, and the module's file."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; one that it imports is not
        raise UserError(
            f"{where}: there is no module {error.name!r}. It is looked for beside train.py, in "
            "the folders of PYTHONPATH and among the installed packages"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        found = "no such name" if function is None else f"a {type(function).__name__}"
        raise UserError(f"{where}: expected a function in {module.__file__}, found {found}")
    return function, module.__file__
