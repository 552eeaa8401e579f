"""Text tables of places: CSV with the separators, decimal signs and encodings that people have; doubt is one error."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa

from rs_embed.errors import SpecError
from rs_embed.export.formats import Columns, ReadOptions, coordinate_names, is_lonlat, pick_column, table_of

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_GROUPED = re.compile(r"[-+]?[1-9]\d{0,2}([.,]\d{3})+")
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_DECIMAL = re.compile(r"-?(0|[1-9]\d*)?(\.\d+)?([eE][-+]?\d+)?")
_log = logging.getLogger("rs_embed")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lines:
    """Cells of a text table, all as texts."""

    separator: str
    header: list[str]
    rows: list[list[str]]
    numbers: list[int]
    """Line of each row in the file, from 1."""


def read_delimited(file: Path, options: ReadOptions) -> Columns:
    """Read a text table of places. Ids and other columns stay as they are: `007` is no number."""
    found = _lines(file, options)
    header, rows = found.header, found.rows
    if doubled := [name for k, name in enumerate(header) if name and name in header[:k]]:
        raise SpecError(f"{file} has the column {doubled[0]!r} twice: rename one of them")
    values = {name: [cells[k] if k < len(cells) else "" for cells in rows] for k, name in enumerate(header)}
    lon, lat = (pick_column(header, names) for names in coordinate_names(options))
    assert lon is not None  # the separator was chosen so
    assert lat is not None
    sign = _decimal_sign(values[lon] + values[lat], options, file)
    x, y = ([_number(text, sign) for text in values[name]] for name in (lon, lat))
    faults = {
        i: f"{lon}={values[lon][i]!r}, {lat}={values[lat][i]!r} are no numbers: write them as {_example(sign)}"
        for i in range(len(rows))
        if math.isnan(x[i] + y[i])
    }
    hint = ": decimal commas need semicolons between the columns" if found.separator == "," else ""
    for i, n in enumerate(map(len, rows)):
        if n != len(header):
            faults[i] = f"it has {n} values for {len(header)} columns{hint if n > len(header) else ''}"
    id_name, *days = (pick_column(header, (name,)) for name in (options.id_column, "start", "end"))
    kept = {n: _typed(v, sign) for n, v in values.items() if n not in (lon, lat, id_name, *days)}
    kept |= {n: pa.array(values[column]) for n, column in zip(("start", "end"), days, strict=True) if column}
    return Columns(
        where=lambda i: f"line {found.numbers[i]}",
        ids=[None] * len(rows) if id_name is None else values[id_name],
        x=x,
        y=y,
        faults=faults,
        table=table_of(kept, len(rows)),
        crs=options.crs,
    )


def _lines(file: Path, options: ReadOptions) -> _Lines:
    """Return the cells of a file in its encoding: by its mark or zero bytes, else UTF-8, else Windows-1252, said."""
    with file.open("rb") as stream:
        encoding = json.detect_encoding(stream.read(4))
    try:
        return _split(file, encoding, options)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise SpecError(f"{file} is no {encoding} as its first bytes say ({error}): save it as UTF-8") from error
    try:
        found = _split(file, "cp1252", options)
    except UnicodeDecodeError:
        raise SpecError(f"{file} is neither UTF-8, UTF-16 nor Windows-1252: save it as UTF-8") from None
    word = next((t for cells in chain([found.header], found.rows) for t in cells if not t.isascii()), "")
    _log.warning("%s is no UTF-8: it is read as Windows-1252 (%.40r); save it as UTF-8 if that is wrong", file, word)
    return found


def _split(file: Path, encoding: str, options: ReadOptions) -> _Lines:
    with file.open(newline="", encoding=encoding) as stream:
        head = ((n, line) for n, line in enumerate(stream) if line.strip() and not line.startswith("sep="))  # Excel's
        before, first = next(head, (0, ""))
        separator = _separator(first, options, file)
        reader = csv.reader(chain([first], stream), delimiter=separator, strict=True)
        try:
            header = [name.strip() for name in next(reader)]
            filled = [(before + reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
        except csv.Error as error:
            raise SpecError(f"{file}, line {before + reader.line_num}: {error} (is a quote closed?)") from error
    n = len(header)
    rows = [cells if any(map(str.strip, cells[n:])) else cells[:n] for _, cells in filled]  # without empty ends
    return _Lines(separator=separator, header=header, rows=rows, numbers=[number for number, _ in filled])


def _separator(line: str, options: ReadOptions, file: Path) -> str:
    """Return the separator by which the first line has both columns of coordinates."""
    headers = {sign: [name.strip() for name in next(csv.reader([line], delimiter=sign), [])] for sign in _SEPARATORS}
    names = coordinate_names(options)
    found = [sign for sign, header in headers.items() if all(pick_column(header, usual) is not None for usual in names)]
    if len(found) > 1:
        words = " or ".join(_SEPARATORS[sign] for sign in found)
        raise SpecError(f"{file}: its columns may be separated by {words}: keep one of them in the first line")
    if found:
        return found[0]
    header = max(headers.values(), key=len)
    missing = next(usual for usual in names if pick_column(header, usual) is None)
    raise SpecError(
        f"{file} has no column {' or '.join(missing[:2])}; it has {', '.join(filter(None, header)) or 'none'}: name "
        "its columns in the first line, or in --lon and --lat"
    )


def _decimal_sign(texts: Sequence[str], options: ReadOptions, file: Path) -> str:
    """Return the decimal sign of all coordinates: a comma if some have one and none has a point.

    In metres, `500,000` alone may be 500 or half a million, and is refused.
    """
    signed = [text for text in texts if "," in text or "." in text]
    sign = "," if any("," in text for text in signed) and not any("." in text for text in signed) else "."
    if signed and all(map(_GROUPED.fullmatch, map(str.strip, signed))) and not is_lonlat(options.crs):
        raise SpecError(
            f"{file}: is {signed[0]!r} a decimal number or one of thousands? Write coordinates without thousands "
            "separators, and with another number of decimals than three"
        )
    return sign


def _example(sign: str) -> str:
    return "13.72 and -8.21" if sign == "." else "13,72 and -8,21, all with the same decimal sign"


def _number(text: str, sign: str) -> float:
    """Return a text as a number; NaN if it is not one: `1_0`, which Python takes, is none."""
    text = text.strip().replace(sign, ".") if sign == "," else text.strip()
    return float(text) if _NUMBER.fullmatch(text) else math.nan


def _typed(texts: Sequence[str], sign: str) -> pa.Array:
    """Return texts as numbers where that loses nothing: `007` and `1.0.0` stay texts; an empty text is null."""
    plain = [t.replace(",", ".") if "." not in t else "no" for t in texts] if sign == "," else texts
    filled = [t for t in plain if t != ""]
    for pattern, kind, parse in ((_INTEGER, pa.int64(), int), (_DECIMAL, pa.float64(), float)):
        if filled and all(pattern.fullmatch(t) and t not in ("-", ".") for t in filled):
            return pa.array([None if t == "" else parse(t) for t in plain], kind)
    return pa.array(texts, pa.string())
