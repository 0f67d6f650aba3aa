"""An object that lives in a process of its own: its memory and its settings touch no other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from utils.errors import UserError
from utils.streams import end_with_parent

_held: Any = None  # the object, in its process


class SeparateProcess:
    """`build(*arguments)` in a new process; call its methods by `call`, end it by `close`.

    The process is spawned, so it imports afresh; `build`, arguments and results are pickled. It ends
    with the one that started it, however that ends.
    """

    def __init__(self, build: Callable[..., Any], *arguments: Any) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), end_with_parent)
        try:
            self._run(_hold, build, arguments)
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """What the method returns; what it raises; UserError if the process died."""
        return self._run(_call, method, arguments)

    def close(self) -> None:
        """End the process once its call, if one runs, is done."""
        self._pool.shutdown()

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process of the measurement died, most likely for lack of memory: "
                "use smaller batches or images, or close what else runs"
            ) from error


def _hold(build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    global _held
    _held = build(*arguments)


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_held, method)(*arguments)
