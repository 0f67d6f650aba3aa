"""YAML files that people write: reading them, and saying what is wrong in them.

`base:` names a YAML file, relative to the one that holds it, whose keys are taken first; `key=value` on the
command line comes last.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError

MAX_CONFIG_BYTES = 1 << 16
MAX_SHOWN = 200  # characters of a wrong value in a message


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader that refuses what no config needs.

    That is a key given twice, of which PyYAML would keep the last in silence, and aliases (`*name`),
    by which a few lines can stand for more values than fit into memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"the alias *{event.anchor}; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> object:
    """The value that `text` is as YAML; UserError that names `where` for anything but plain YAML."""
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except Exception as error:  # the constructors of its tags raise whatever Python raises
        reason = error if isinstance(error, yaml.YAMLError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{where} is not plain YAML: {reason}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The `key: value` lines of a short YAML file; UserError where it is not such a file."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot read the config {path}: it is not a regular file")
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UserError(
                f"{path} is over {MAX_CONFIG_BYTES} bytes; a config is a short YAML file"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:  # the last two: names that are not paths
        raise UserError(f"cannot read the config {str(path)!r}: {error}") from error
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` lines, got {type(content).__name__}")
    for key in content:
        if not isinstance(key, str):
            raise UserError(
                f"{path} must hold `key: value` lines with text as keys, got {shown(key)}: put it in quotes"
            )
    return content


def read_mapping(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's keys over those of its `base:`, which may have a base itself; not yet validated.

    UserError for anything but a short plain YAML mapping.
    """
    try:
        content = read_yaml(path)
    except UserError as error:
        raise UserError(f"{error}, which {seen[-1]} names as its base") if seen else error from None
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(str(p) for p in (*seen, path))
        raise UserError(f"these configs inherit from each other in a circle: {chain}")
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UserError(f"{path}: base must be the path of a YAML file, got {shown(base)}")
    return read_mapping(path.parent / base, (*seen, resolved)) | content


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The values of `key=value` arguments, each value written as in YAML."""
    values = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"an override is written key=value, got {override!r}")
        values[key.strip()] = parse_yaml(text, f"the override {override!r}")
        if comment := _comment_in(text):
            raise UserError(
                f"the override {override!r}: for YAML {comment!r} is a comment. If it belongs to the value, put that "
                f"in quotes within those of the shell: '{key}=\"...\"'; otherwise leave it out"
            )
    return values


def _comment_in(text: str) -> str:
    """The comment that ends a line of YAML, '' where it has none."""
    *_, last, _end_of_text = yaml.scan(text)
    return text[last.end_mark.index :].strip()


def shown(value: object) -> str:
    """A wrong value as text for a message, shortened if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out an integer of over 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def unknown_key(
    key: str, known: Iterable[str], page: str, other_names: Mapping[str, str] | None = None
) -> str:
    """The message about a key that is none of `known`, which `page` describes.

    `other_names` are those that `known` have elsewhere.
    """
    meant = (other_names or {}).get(key)
    close = [meant] if meant else difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"see {page} for all keys"
    return f"unknown key {key!r}; {hint}"
