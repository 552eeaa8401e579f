"""Places, time ranges and imagery of a batch as its caller gives them, checked and brought to one length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from rs_embed.arguments import check_place, check_temporal
from rs_embed.errors import ModelError, SpecError
from rs_embed.grid import place_geobox
from rs_embed.providers.base import PatchRequest
from rs_embed.specs import Place, SensorSpec, TemporalSpec


def listed(name: str, values: object) -> list[Any] | None:
    """Return several values as a list, and None as it is."""
    try:
        return None if values is None else list(cast(Iterable[Any], values))
    except TypeError:
        raise SpecError(f"{name} must be a list, got {values!r:.120}: put it into brackets, [...]") from None


def _times_of(values: object) -> list[TemporalSpec | None]:
    """Return the time ranges of a batch; a SpecError for anything but a list of them."""
    listed = list(values) if isinstance(values, Iterable) and not isinstance(values, (str, Mapping)) else [values]
    times = [time for time in listed if time is None or isinstance(time, TemporalSpec)]
    if len(times) != len(listed):
        check_temporal(values)
    return times


def expand(
    caller: str,
    spatials: Sequence[Place] | None,
    temporal: TemporalSpec | Sequence[TemporalSpec] | None,
    sensor: SensorSpec,
    input_chws: Sequence[object] | None,
) -> tuple[list[Place | None], list[TemporalSpec | None], list[PatchRequest]]:
    """Return the place, the time range and, unless pixels were passed, the imagery of each request, all checked."""
    given = spatials if spatials is not None else input_chws
    if given is None:
        raise SpecError("a place is needed: spatial=PointBuffer(lon, lat, buffer_m) or BBox(…), or pixels as input_chw")
    n = len(given)
    if input_chws is not None and len(input_chws) != n:
        raise SpecError(f"{len(input_chws)} input_chws for {n} places: give one for each place")
    places: list[Place | None] = [None] * n if spatials is None else list(spatials)
    is_one = temporal is None or isinstance(temporal, TemporalSpec)
    times: list[TemporalSpec | None] = [temporal] * n if is_one else _times_of(temporal)  # type: ignore[list-item]
    if len(times) != n:
        raise SpecError(f"{len(times)} time ranges for {n} places: give one for all, or one for each")
    patches = []
    for place, time in zip(places, times, strict=True):
        if place is None and input_chws is not None:
            continue
        place = check_place(place)
        if input_chws is not None:
            continue
        if not isinstance(time, TemporalSpec) or time.mode != "range":
            got = "no temporal" if time is None else repr(time)
            raise ModelError(f"{caller} needs temporal=TemporalSpec.range('YYYY-MM-DD', 'YYYY-MM-DD'), got {got}")
        patches.append(PatchRequest(place_geobox(place, sensor.scale_m), time, sensor))
    return places, times, patches
