"""Sentinel-2 products in ESA's SAFE layout, unpacked or zipped: each granule is one scene."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from rs_embed.errors import ProviderError
from rs_embed.providers.local.names import acquisition_time, level_of
from rs_embed.providers.local.safe_metadata import XML_LIMIT_BYTES, SafeMetadata, read_metadata
from rs_embed.providers.local.tree import FileTree, Found, first_header, folders_of, open_zip
from rs_embed.providers.scenes import BandFile, Scene
from rs_embed.sentinel2 import L1C_COLLECTION, L2A_COLLECTION, StatedScale, canonical_band

_IMAGES = "IMG_DATA"
_IMAGE = re.compile(r"(?:^|_)(?P<band>B\d{1,2}A?|SCL)(?:_(?P<resolution>10|20|60)m)?\.(?:jp2|tiff?)$", re.IGNORECASE)
_TILE = re.compile(r"_T(\d{2}[A-Z]{3})(?=_|$)")
_GRANULE_BASELINE = re.compile(r"_N(\d{2}\.\d{2})$")  # of the long names
_PRODUCT_XML = re.compile(r"(MTD_MSIL(1C|2A)|S2[A-Z]_\w+_MTD_(SAF|MSI)L(1C|2A)_\w+)\.xml", re.IGNORECASE)
_TILE_XML = re.compile(r"(MTD_TL|S2[A-Z]_\w+_MTD_L(1C|2A)_TL_\w+)\.xml", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Granule:
    """One tile of a product, and the files of its bands."""

    tree: FileTree
    path: PurePosixPath  # of the granule's folder
    product: PurePosixPath  # of the product's folder; the granule's own where it was copied without its product
    images: Sequence[str]  # files below IMG_DATA
    documents: Sequence[str | None]  # metadata of the product, and of the tile
    has_siblings: bool

    @property
    def product_name(self) -> str:
        """Name of the product's folder, or of the folder or archive in which it was opened."""
        name = self.product.name or self.tree.root.name
        return name.removesuffix(".zip").removesuffix(".SAFE")

    @property
    def id(self) -> str:
        """Name of the product, with that of the granule where it has several."""
        return f"{self.product_name}/{self.path.name}" if self.has_siblings else self.product_name


def find_products(tree: FileTree, found: Found) -> None:
    """Add a scene for each granule of the products in a folder and in the archives that lie there."""
    _find_granules(tree, found)
    for name in () if tree.is_zip else tree.with_suffix(".zip"):
        try:
            archive = open_zip(tree.root / name)
        except ProviderError as error:
            found.unread.append(str(error))
        else:
            _find_granules(archive, found)


def _find_granules(tree: FileTree, found: Found) -> None:
    granules = _granules(tree)
    for granule in granules:
        if found.known.isdisjoint(map(tree.raster_path, granule.images)):  # else a STAC item describes it
            try:
                found.scenes.append(_scene(granule, found))
            except ProviderError as error:
                found.left_out.append(f"{granule.id}: {error}")
    products = {str(granule.product) for granule in granules}
    inside = (name for name in tree.names if products and not products.isdisjoint(folders_of(name)))
    found.known.update(map(tree.raster_path, inside))


def _granules(tree: FileTree) -> list[_Granule]:
    images_of: dict[str, list[str]] = defaultdict(list)
    documents: dict[str, list[str]] = defaultdict(list)
    for name in tree.names:
        folder, separator, _ = f"./{name}".partition(f"/{_IMAGES}/")
        if separator:
            images_of[folder].append(name)
        elif name.lower().endswith(".xml"):
            folder, _, file = name.rpartition("/")
            documents[folder or "."].append(file)
    images = {PurePosixPath(folder): names for folder, names in images_of.items()}
    products = {path: path.parent.parent if path.parent.name == "GRANULE" else path for path in images}
    count = Counter(products.values())
    return [
        _Granule(
            tree=tree,
            path=path,
            product=products[path],
            images=names,
            documents=tuple(
                next((str(folder / name) for name in documents[str(folder)] if pattern.fullmatch(name)), None)
                for folder, pattern in ((products[path], _PRODUCT_XML), (path, _TILE_XML))
            ),
            has_siblings=count[products[path]] > 1,
        )
        for path, names in images.items()
    ]


def _scene(granule: _Granule, found: Found) -> Scene:
    paths = _band_paths(granule)
    if not paths:
        raise ProviderError(f"its {_IMAGES} holds no band (files such as T33UVP_20220603T101031_B04_10m.jp2)")
    stated = _read_metadata(granule, found)
    names = (granule.product.name, granule.path.name, *granule.images[:1], str(granule.tree.root))
    level = stated.level or level_of(names) or ("L2A" if any("/R10m/" in image for image in granule.images) else None)
    if level is None:
        raise ProviderError("neither its names nor its metadata tell if it is L1C or L2A: keep the product's name")
    acquired = stated.acquired or acquisition_time(names) or stated.sensed
    if acquired is None:
        raise ProviderError("it has no date: keep the product's name or its MTD_MSIL2A.xml")
    files = {band: BandFile(path, stated=_stated_scale(stated, band)) for band, path in paths.items()}
    header = first_header(list(files.values()))
    tile = next((match[1] for name in (granule.path.name, *names) if (match := _TILE.search(name))), None)
    baseline = stated.baseline or next((m[1] for n in names if (m := _GRANULE_BASELINE.search(n))), None)
    properties = {"s2:mgrs_tile": tile, "s2:processing_baseline": None if baseline == "99.99" else baseline}
    return Scene(
        id=granule.id,
        acquired=acquired,
        bounds=header.bounds_lonlat,
        footprint=None if granule.has_siblings else stated.footprint,
        files=files,
        cloud_pct=stated.cloud_pct,
        collection=L1C_COLLECTION if level == "L1C" else L2A_COLLECTION,
        properties={key: value for key, value in properties.items() if value is not None},
        names=names,
    )


def _band_paths(granule: _Granule) -> dict[str, str]:
    """Return the file of each band, the finest where there are several."""
    best: dict[str, tuple[int, str]] = {}
    for name in granule.images:
        match = _IMAGE.search(PurePosixPath(name).name)
        band = canonical_band(match["band"]) if match else None
        if match is not None and band is not None:
            resolution = int(match["resolution"] or 0)
            if band not in best or resolution < best[band][0]:
                best[band] = resolution, granule.tree.raster_path(name)
    return {band: path for band, (_, path) in best.items()}


def _read_metadata(granule: _Granule, found: Found) -> SafeMetadata:
    """Read the metadata files of a granule; one that cannot be read leaves the facts to the names."""
    try:
        product, tile = (None if n is None else granule.tree.read(n, XML_LIMIT_BYTES) for n in granule.documents)
        return read_metadata(product, tile)
    except ProviderError as error:
        found.unread.append(f"{granule.id}: {error}; its names are used instead")
        return SafeMetadata()


def _stated_scale(stated: SafeMetadata, band: str) -> StatedScale | None:
    rule = None if band == "SCL" else stated.scale_and_offset(band)
    return None if rule is None else StatedScale("product metadata", *rule)
