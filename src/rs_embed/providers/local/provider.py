"""Provider of a folder of Sentinel-2 imagery, of a zipped product, or of a static STAC catalog."""

from __future__ import annotations

import logging
import warnings
from datetime import time
from pathlib import Path

from rasterio.errors import NotGeoreferencedWarning

from rs_embed.errors import ProviderError
from rs_embed.providers.archive import ArchiveProvider
from rs_embed.providers.local.named import find_named
from rs_embed.providers.local.safe import find_products
from rs_embed.providers.local.series import find_series
from rs_embed.providers.local.stac import CATALOG_NAMES, find_items, find_linked_items
from rs_embed.providers.local.tree import Found, open_tree
from rs_embed.providers.scenes import Scene
from rs_embed.providers.selection import by_level, drop_duplicates
from rs_embed.sentinel2 import COLLECTIONS, L2A_COLLECTION

_log = logging.getLogger("rs_embed")


class LocalProvider(ArchiveProvider):
    """Provider over files on this machine, the backend `"local:<path>"`; the folder is searched once, at the start.

    Found are STAC items, SAFE products (also zipped), netCDF time series, and rasters whose names or descriptions tell
    their bands; `docs/local-files.md` has the table. An item describes the rasters of its folder, so that no file name
    is read there. One acquisition in several processing baselines is used once, in the newest. Products of L1C are read
    for `SensorSpec(collection="sentinel-2-l1c")` alone.

    Args:
        path: a folder, a zipped product, a netCDF file, a STAC item, or the `catalog.json` of a static STAC catalog.

    Raises:
        ProviderError: when there is no usable scene; the error says what was found instead.

    Examples:
        >>> from pathlib import Path
        >>> import rs_embed
        >>> folder = Path(rs_embed.__file__).parent / "providers" / "sample_data"  # any folder of yours
        >>> rs_embed.LocalProvider(folder).name
        'local'
    """

    def __init__(self, path: str | Path) -> None:
        root = Path(path).expanduser()
        if not root.exists():
            raise ProviderError(f"local:{path}: no such folder or STAC file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a netCDF with several variables, or our error
            found = _find(root)
        if not found.scenes:
            reasons = "; ".join([*found.left_out, *found.unread][:3])
            raise ProviderError(
                f"local:{path} has no usable Sentinel-2 scene: "
                f"{reasons or 'no product, no STAC item, no netCDF and no raster of a band'}"
            )
        for problem in (*found.left_out, *found.unread):
            _log.warning("local:%s: left out: %s", path, problem)
        source, names = f"local:{root.name}", "; ".join(found.left_out[:2])
        note = f"{source} leaves out {len(found.left_out)} product(s) or file(s): {names}"
        scenes = sorted(_each_once(found.scenes), key=lambda s: s.id)
        super().__init__("local", source, scenes, (note,) if found.left_out else ())
        self.path = root
        self.left_out = tuple(found.left_out)
        """Imagery that is no scene, with the reason."""

    def __repr__(self) -> str:
        return f"LocalProvider({str(self.path)!r})"


def _find(root: Path) -> Found:
    found = Found()
    catalog = next((p for name in CATALOG_NAMES if (p := root / name).is_file()), root)
    if catalog.suffix.lower() in (".json", ".geojson"):
        try:
            find_linked_items(catalog, found)
        except ProviderError as error:
            if catalog == root:
                raise ProviderError(f"local:{root}: {error}") from error
            found.unread.append(str(error))
        else:
            return found
    tree = open_tree(root)
    for find in (find_items, find_products, find_series, find_named):
        find(tree, found)
    return found


def _each_once(scenes: list[Scene]) -> list[Scene]:
    """Leave out doubles of one acquisition, within each level; a scene without time of day cannot be told apart."""
    untimed = [s for s in scenes if s.acquired.time() == time.min]
    levels = by_level([s for s in scenes if s.acquired.time() != time.min], L2A_COLLECTION)
    kept = {id(s) for same in (untimed, *(drop_duplicates(level, COLLECTIONS) for level in levels)) for s in same}
    return [s for s in scenes if id(s) in kept]
