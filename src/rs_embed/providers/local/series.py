"""Time series in netCDF with CF conventions: each time step is a scene; GDAL reads the pixels."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import PurePosixPath

import numpy as np
import rasterio
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader

from rs_embed.errors import ProviderError
from rs_embed.providers.local.names import acquisition_time
from rs_embed.providers.local.tree import SERIES_SUFFIX, FileTree, Found
from rs_embed.providers.raster import read_header
from rs_embed.providers.scenes import BandFile, Scene
from rs_embed.sentinel2 import StatedScale, band_in_text

_SPACE = ("x", "y", "lon", "lat", "longitude", "latitude", "easting", "northing")
_DEFAULT_FILL = {"uint16": 65535.0}  # netCDF's own, where no `_FillValue` is stated; GDAL knows it for signed types

_Layer = tuple[datetime | None, str | None]  # time, and band where a dimension tells it


@dataclass(frozen=True, slots=True)
class _Variable:
    """One variable that holds a band, or all bands along a dimension."""

    path: str  # under which GDAL opens it
    layers: Sequence[_Layer]  # of GDAL's bands
    band: str | None  # that its name states
    dtype: str
    nodata: float | None
    stated: StatedScale | None


def find_series(tree: FileTree, found: Found) -> None:
    """Add a scene for each time step of the netCDF files in a folder."""
    for name in () if tree.is_zip else tree.with_suffix(SERIES_SUFFIX):
        path = tree.raster_path(name)
        if path not in found.known:
            try:
                found.scenes.extend(_scenes(name, path, (name, tree.root.name)))
            except ProviderError as error:
                found.left_out.append(f"{name}: {error}")


def _scenes(name: str, path: str, names: Sequence[str]) -> Iterator[Scene]:
    variables = [_read_variable(variable) for variable in _variable_paths(path)]
    files: dict[tuple[datetime | None, int], dict[str, BandFile]] = defaultdict(dict)
    for variable in variables:
        seen: Counter[tuple[datetime | None, str]] = Counter()
        for index, (time, band) in enumerate(variable.layers, start=1):
            band = band or variable.band
            if band is not None and (band == "SCL" or variable.dtype not in ("uint8", "int8")):
                file = BandFile(variable.path, index, variable.stated, nodata=variable.nodata)
                files[time, seen[time, band]].setdefault(band, file)
                seen[time, band] += 1
    if not files:
        stated = ", ".join(v.path.rpartition(":")[2] for v in variables) or "none"
        raise ProviderError(f"no variable is a Sentinel-2 band (it has {stated}): name them B04, B03, B02")
    bounds = read_header(next(iter(next(iter(files.values())).values())).path).bounds_lonlat
    for (time, number), bands in files.items():
        acquired = time or acquisition_time(names)
        if acquired is None:
            raise ProviderError("it has neither a time axis nor a date in its name")
        twin = f" ({number + 1})" if number else ""
        identifier = f"{name} {acquired:%Y-%m-%dT%H:%M:%S}{twin}"
        yield Scene(id=identifier, acquired=acquired, bounds=bounds, files=bands, names=(PurePosixPath(name).stem,))


def _open(path: str) -> DatasetReader:
    try:
        return rasterio.open(path, driver="netCDF")
    except RasterioIOError as error:
        raise ProviderError(f"it cannot be opened as netCDF: {error}") from error


def _variable_paths(path: str) -> list[str]:
    with _open(path) as dataset:
        alone = [f'netcdf:"{path}":{dataset.tags(1).get("NETCDF_VARNAME", "")}'] if dataset.count else []
        return list(dataset.subdatasets) or alone


def _read_variable(path: str) -> _Variable:
    with _open(path) as dataset:
        own = dataset.tags(1)
        band = band_in_text(own.get("NETCDF_VARNAME", "")) or band_in_text(own.get("long_name", ""))
        rule = float(dataset.scales[0]), float(dataset.offsets[0])
        return _Variable(
            path=path,
            layers=_layers(dataset),
            band=band,
            dtype=dataset.dtypes[0],
            nodata=_nodata(own, dataset.dtypes[0]),
            stated=None if rule == (1.0, 0.0) else StatedScale("variable", *rule),
        )


def _nodata(tags: Mapping[str, str], dtype: str) -> float | None:
    """Return the value of an empty pixel of a variable where GDAL does not mask it."""
    if tags.get("_FillValue") or tags.get("missing_value"):
        return None
    return _number(tags["nodata"]) if "nodata" in tags else _DEFAULT_FILL.get(dtype)


def _layers(dataset: DatasetReader) -> list[_Layer]:
    """Return time and band of each of GDAL's bands, which run over all dimensions but y and x, the last fastest."""
    tags = dataset.tags()
    axes: list[list[_Layer]] = []
    for dimension in _items(tags.get("NETCDF_DIM_EXTRA", "")):
        if dimension.lower() in _SPACE:
            raise ProviderError("its dimensions must end in y, x: transpose it before it is written")
        values = _items(tags.get(f"NETCDF_DIM_{dimension}_VALUES", ""))
        axes.append(_axis(dimension, values, tags))
    if math.prod(map(len, axes)) != dataset.count:
        raise ProviderError(
            f"the values of its dimensions {', '.join(_items(tags.get('NETCDF_DIM_EXTRA', '')))} cannot be read: "
            "write netCDF-4 (to_netcdf(…, engine='h5netcdf')) with a coordinate for each"
        )
    return [
        (next((t for t, _ in steps if t is not None), None), next((b for _, b in steps if b is not None), None))
        for steps in product(*axes)
    ]


def _axis(dimension: str, values: Sequence[str], tags: Mapping[str, str]) -> list[_Layer]:
    units = tags.get(f"{dimension}#units", "")
    if " since " in units:
        return [(time, None) for time in _times(values, units, tags.get(f"{dimension}#calendar", "standard"))]
    bands = [band_in_text(value) for value in values]
    if len(values) > 1 and not any(bands):
        raise ProviderError(f"its dimension {dimension!r} is neither time (units '… since …') nor names of bands")
    return [(None, band) for band in bands]


def _times(values: Sequence[str], units: str, calendar: str) -> list[datetime]:
    from xarray import Dataset, decode_cf  # half a second, which only time series need

    axis = Dataset({"time": ("time", np.array(values, float), {"units": units, "calendar": calendar})})
    try:
        times = decode_cf(axis)["time"].values.astype("datetime64[us]").tolist()
    except (ValueError, OverflowError, TypeError, ImportError) as error:
        raise ProviderError(f"its time axis in {units!r} ({calendar}) cannot be read: {error}") from error
    return [time.replace(tzinfo=UTC) for time in times]


def _items(text: str) -> list[str]:
    """Return the items of GDAL's `{a,b,c}`, or of one value without braces."""
    return [item.strip() for item in text.strip("{}").split(",")] if text else []


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
