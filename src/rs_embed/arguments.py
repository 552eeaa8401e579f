"""Arguments that several public functions take: the spec that was passed, or one error that names the right call."""

from __future__ import annotations

from rs_embed.errors import SpecError
from rs_embed.specs import DEFAULT_SENSOR, Place, SensorSpec, TemporalSpec


def check_place(value: object) -> Place:
    """Return a place; a SpecError for anything else says which class its numbers fit."""
    if isinstance(value, Place):
        return value
    numbers = ", ".join(map(repr, value)) if isinstance(value, (tuple, list)) else ""
    fits = {2: f"PointBuffer({numbers}, buffer_m=…)", 3: f"PointBuffer({numbers})", 4: f"BBox({numbers})"}
    remedy = fits.get(len(value), "") if isinstance(value, (tuple, list)) else ""
    raise SpecError(
        f"a place must be a BBox or a PointBuffer, got {value!r:.120}: write "
        f"{remedy or 'PointBuffer(lon, lat, buffer_m) or BBox(west, south, east, north)'}"
    )


def check_temporal(value: object) -> TemporalSpec | None:
    """Return a time range, or None; a SpecError for anything else."""
    if value is None or isinstance(value, TemporalSpec):
        return value
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2
    remedy = f"range({value[0]!r}, {value[1]!r})" if is_pair else 'range("YYYY-MM-DD", "YYYY-MM-DD")'  # type: ignore[index]
    raise SpecError(f"temporal must be a TemporalSpec, got {value!r:.120}: write TemporalSpec.{remedy}")


def check_sensor(value: object) -> SensorSpec:
    """Return a sensor, the default one for None; a SpecError for anything else."""
    if value is None or isinstance(value, SensorSpec):
        return value or DEFAULT_SENSOR
    raise SpecError(f"sensor must be a SensorSpec, got {value!r:.120}: write SensorSpec(scale_m=10, cloudy_pct=30)")
