"""Slips in what people type: `--point 13.7,48.2` is taken, a decimal comma is not; usage errors name the value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from rs_embed.errors import SpecError

_COORDINATES = {"--point": "LON LAT", "--at": "LON LAT", "--bbox": "W S E N"}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")


def split_coordinates(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--point 13.7,48.2` as `--point 13.7 48.2`; an unclear comma is a SpecError."""
    return list(_split(iter(arguments)))


def _split(arguments: Iterator[str]) -> Iterator[str]:
    for argument in arguments:
        option, _, value = argument.partition("=")
        yield option if option in _COORDINATES else argument
        if option not in _COORDINATES:
            continue
        value = value or next(arguments, "")
        parts = re.split(r"[,;\s]+", value.strip("()[] "))
        if len(parts) == 1:
            yield from parts if value else ()
            continue
        usage = _COORDINATES[option]
        wanted = len(usage.split())
        is_clear = wanted > 2 or any("." in part for part in parts)  # 13,7 may be 13.7
        if len(parts) != wanted or not is_clear or not all(map(_NUMBER.fullmatch, parts)):
            raise SpecError(f"{option} {value}: write {option} {usage}, with points as decimal signs: {option} 13.7 …")
        yield from parts


def explain(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """Return the message of a usage error, with the value that an option could not take and where the help is."""
    message = error.format_message().rstrip(".")
    parameter: Any = getattr(error, "param", None)
    for at in reversed(range(len(arguments) if parameter is not None else 0)):  # the last one counts
        option, equals, value = arguments[at].partition("=")
        if option in parameter.opts:
            given = [value] if equals else arguments[at + 1 : at + 1 + parameter.nargs]
            message += f", got {' '.join(given)!r}" if given else ""
            break
    if (option := getattr(error, "option_name", "")) in _COORDINATES:
        message += f": {option} {_COORDINATES[option]}"
    context: Any = getattr(error, "ctx", None)
    return f"{message}; see {context.command_path if context is not None else 'rs-embed'} --help"
