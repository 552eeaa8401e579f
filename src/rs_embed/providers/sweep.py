"""Patches of many places from files: neighbours are read together, so that each block is read once for all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING

from rs_embed import settings
from rs_embed.errors import ProviderError
from rs_embed.grid import epsg_of
from rs_embed.patch import Patch
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.blocks import PlaceLayers, read_places
from rs_embed.providers.compositing import CompositeBuilder
from rs_embed.providers.selection import Selection
from rs_embed.providers.stac.offsets import DarkPixels

if TYPE_CHECKING:
    from rs_embed.providers.http import Signer

_MOST_PLACES = 4000
_MOST_BYTES = 1 << 32  # of the layers of all places of a sweep; its front, which memory holds, is a part of them


def fetch_swept(
    requests: Sequence[PatchRequest],
    start: Callable[[int], CompositeBuilder],
    signer: Signer | None = None,
    dark_pixels: MutableMapping[str, DarkPixels | None] | None = None,
) -> Iterator[tuple[int, Patch | ProviderError]]:
    """Yield each patch as its last block arrives.

    `start` returns the builder of the request at a position, with the scenes to read; a place without one is a
    ProviderError. Files of `dark_pixels` that are None are filled in.
    """
    builders: dict[int, CompositeBuilder | ProviderError] = {}

    def begin(position: int) -> int:
        try:
            builders[position] = builder = start(position)
        except ProviderError as error:
            builders[position] = error
            return 0
        return layer_bytes(builder.selection)

    for positions in sweeps(requests, begin):
        by_composite: dict[str, dict[int, CompositeBuilder]] = {"median": {}, "mosaic": {}}
        for position in positions:
            builder = builders.pop(position)
            if isinstance(builder, ProviderError):
                yield position, builder
            else:
                by_composite[builder.selection.request.sensor.composite][position] = builder
        for composite, scenes_per_round in (("median", sys.maxsize), ("mosaic", 1)):
            yield from _read(
                by_composite[composite], scenes_per_round, signer, {} if dark_pixels is None else dark_pixels
            )


def sweeps(requests: Sequence[PatchRequest], size_of: Callable[[int], int]) -> Iterator[list[int]]:
    """Yield positions of the requests of each sweep, neighbours on the map together; `size_of` one is in bytes."""
    grids = [request.geobox for request in requests]
    positions: list[int] = []
    size = 0
    for position in sorted(range(len(grids)), key=lambda i: (epsg_of(grids[i]), -grids[i].affine.f, grids[i].affine.c)):
        more = size_of(position)
        if positions and (len(positions) == _MOST_PLACES or size + more > _MOST_BYTES):
            yield positions
            positions, size = [], 0
        positions.append(position)
        size += more
    if positions:
        yield positions


def layer_bytes(selection: Selection) -> int:
    """Return the bytes that a selection takes in memory: two a pixel and band, one for the scene classification."""
    height, width = selection.request.geobox.shape
    n_bands = len(selection.request.sensor.bands)
    return height * width * sum(2 * n_bands + ("SCL" in scene.files) for scene in selection.scenes)


def _read(
    pending: dict[int, CompositeBuilder],
    scenes_per_round: int,
    signer: Signer | None,
    dark_pixels: MutableMapping[str, DarkPixels | None],
) -> Iterator[tuple[int, Patch | ProviderError]]:
    """Read scenes in rounds, newest first, until all are read or no pixel of a mosaic is left open."""
    start = 0
    while pending:
        stop = start + scenes_per_round
        places = [PlaceLayers(i, b.selection.request, b.selection.scenes[start:stop]) for i, b in pending.items()]
        for place in read_places(places, settings.fetch_workers(), signer, dark_pixels):
            builder = pending[place.position]
            for number, scene in enumerate(place.scenes):
                if number in place.faults:
                    builder.drop_unread(scene, place.faults[number])
                else:
                    builder.add(scene, place.take_pixels(number))
            if stop >= len(builder.selection.scenes) or builder.is_full:
                yield place.position, pending.pop(place.position).build()
        start = stop
