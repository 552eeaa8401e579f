"""Provider over scenes whose files are known beforehand, such as those of a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rs_embed.errors import ProviderError
from rs_embed.patch import Patch
from rs_embed.providers.base import FetchPlan, PatchRequest
from rs_embed.providers.compositing import CompositeBuilder
from rs_embed.providers.scenes import Scene
from rs_embed.providers.selection import select_scenes
from rs_embed.providers.sweep import fetch_swept, layer_bytes


class ArchiveProvider:
    """Provider over a fixed set of scenes; `source` is their origin in words, `notes` doubts about it, for metadata."""

    def __init__(self, name: str, source: str, scenes: Sequence[Scene], notes: tuple[str, ...] = ()) -> None:
        self.name, self.source, self.scenes, self.notes = name, source, tuple(scenes), notes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, {len(self.scenes)} scenes)"

    def fetch(self, requests: Sequence[PatchRequest]) -> Iterator[tuple[int, Patch | ProviderError]]:
        """Yield each patch as its last block is read.

        Args:
            requests: grid, time range and sensor of each place.
        """

        def start(position: int) -> CompositeBuilder:
            selection = select_scenes(self.scenes, requests[position])
            selection.check(self.name)
            return CompositeBuilder(self.name, self.source, selection, notes=self.notes)

        return fetch_swept(requests, start)

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        """Count scenes and bytes from footprints and dates alone.

        Args:
            requests: grid, time range and sensor of each place.
        """
        selections = [select_scenes(self.scenes, request) for request in requests]
        return FetchPlan(
            scenes_of=tuple(len(s.scenes) for s in selections),
            covered=tuple(s.covered for s in selections),
            read_bytes=sum(map(layer_bytes, selections)),
        )
