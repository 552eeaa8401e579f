"""Make `export/land.png`, the cells of one degree that hold land, from Natural Earth 1:50m.

Run it as `npm install world-atlas@2.0.2 && python web/land.py`. Natural Earth is in the public domain; world-atlas
(ISC) is its distribution on npm.
"""

import json
from itertools import accumulate
from pathlib import Path

import numpy as np
import shapely
from PIL import Image, PngImagePlugin

SOURCE = Path("node_modules/world-atlas/land-50m.json")
TARGET = Path(__file__).parents[1] / "src" / "rs_embed" / "export" / "land.png"


def read_land(file: Path) -> shapely.Geometry:
    """Return the polygons of a TopoJSON file, https://github.com/topojson/topojson-specification."""
    topology = json.loads(file.read_text())
    scale, move = (np.array(topology["transform"][name]) for name in ("scale", "translate"))
    arcs = [
        np.array(list(accumulate(arc, lambda a, b: [a[0] + b[0], a[1] + b[1]]))) * scale + move
        for arc in topology["arcs"]
    ]

    def ring(numbers: list[int]) -> np.ndarray:
        points = np.concatenate([arcs[n] if n >= 0 else arcs[~n][::-1] for n in numbers])
        lon = np.unwrap(points[:, 0], period=360)  # over 180° it goes on: 179, 181
        if abs(lon[-1] - lon[0]) > 180:  # around the South Pole
            points, lon = np.vstack([points, [(0, -90), (0, -90)]]), np.append(lon, [lon[-1], lon[0]])
        return np.column_stack([lon, points[:, 1]])

    [land] = topology["objects"]["land"]["geometries"]
    polygons = [shapely.Polygon(ring(p[0]), [ring(hole) for hole in p[1:]]) for p in land["arcs"]]
    return shapely.union_all(shapely.make_valid(polygons))


def main() -> None:
    """Write the picture: 360 x 180 pixels of one bit, north up, white where a cell holds land."""
    land = read_land(SOURCE)
    shapely.prepare(land)
    west, north = np.meshgrid(np.arange(-180, 180), np.arange(90, -90, -1))
    turns = [shapely.box(west + turn, north - 1, west + turn + 1, north) for turn in (-360, 0, 360)]
    cells = np.any([shapely.intersects(land, boxes) for boxes in turns], axis=0)
    facts = PngImagePlugin.PngInfo()
    facts.add_text("Copyright", "Public domain: made with Natural Earth (naturalearthdata.com), land 1:50m")
    Image.fromarray(cells).save(TARGET, optimize=True, pnginfo=facts)


if __name__ == "__main__":
    main()
