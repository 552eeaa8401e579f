"""Quicklooks of a dataset's rows, read one file at a time."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow.parquet as pq

from rs_embed.errors import RSEmbedError
from rs_embed.export.checks import reading, regular_file
from rs_embed.files import FileMemo

_PNG = b"\x89PNG\r\n\x1a\n"
_log = logging.getLogger("rs_embed")
_files: FileMemo[dict[str, bytes]] = FileMemo(keep=16)
"""Thumbnails of the last few files: a map asks for neighbours one by one."""


def read_thumbnails(dataset: Path, part: str) -> dict[str, bytes]:
    """Return the thumbnails of one file by `unique_id`; a file that is missing or damaged has none."""
    file = dataset / "thumbnails" / part
    if not file.exists():
        return {}

    def read() -> dict[str, bytes]:
        try:
            with reading(regular_file(dataset, file)):
                columns = pq.read_table(file, columns=["unique_id", "thumbnail"]).to_pydict()
        except RSEmbedError as error:
            _log.warning("%s", error)
            return {}
        pairs = zip(columns["unique_id"], columns["thumbnail"], strict=True)
        return {id: png for id, png in pairs if isinstance(png, bytes) and png.startswith(_PNG)}

    return _files.get(file, read)
