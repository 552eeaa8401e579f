"""Options of `export` and `plan`: many places, each at one or more times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from rs_embed.cli import options
from rs_embed.cli.places import check_one_source, side_m
from rs_embed.specs import BBox

if TYPE_CHECKING:
    from rs_embed.export.formats import ReadOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOptions:
    """The rows of a dataset: a file, or an area that is cut into chips."""

    file: options.PlacesFile = None
    bbox: options.Box = None
    region: Annotated[Path | None, Option(help="GeoJSON file of polygons to cut into chips.")] = None
    every: Annotated[options.Every | None, options.choice(options.Every, "Cut time ranges into these periods.")] = None
    buffer_m: options.BufferM = None
    chip: options.Chip = None
    crs: Annotated[str, Option(help="CRS of the two columns of a CSV file.")] = "EPSG:4326"
    id: Annotated[str, Option(help="Column with the ids of the rows.")] = "id"
    lon: Annotated[str | None, Option(help="Column with longitude or x.")] = None
    lat: Annotated[str | None, Option(help="Column with latitude or y.")] = None

    def places(self) -> object:
        """Return the file, the box or the polygons to embed.

        Raises:
            SpecError: unless exactly one of them is given.
        """
        from rs_embed.export.regions import read_region

        check_one_source(
            {"FILE": self.file, "--bbox": self.bbox, "--region": self.region},
            "one source of places is needed: a file, --bbox W S E N or --region FILE",
        )
        if self.bbox is not None:
            return BBox(*self.bbox)
        return self.file if self.region is None else read_region(self.region)

    @property
    def chip_m(self) -> float | None:
        """Side of each place in metres, or None where the rows have boxes."""
        return side_m(self.buffer_m, self.chip)

    def reading(self) -> ReadOptions:
        """Return the names of the columns."""
        from rs_embed.export.formats import ReadOptions

        return ReadOptions(crs=self.crs, id_column=self.id, lon_column=self.lon, lat_column=self.lat)


Grid = Annotated[bool, Option("--grid", help="Add the token grids (7 x 7 x 768 numbers per place).")]
