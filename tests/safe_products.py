"""SAFE products of Sentinel-2 as ESA delivers them, with real JPEG-2000 images of a few pixels."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

COMPACT = "S2A_MSIL2A_20220603T101031_N0400_R022_T33UVP_20220603T140000"
LONG = "S2A_USER_PRD_MSIL2A_PDMC_20160504T225644_R094_V20160504T105917_20160504T105917"
RGB = {"B04": 2300, "B03": 2200, "B02": 2100}
_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")


def write_jp2(path: Path, values: np.ndarray, transform: Affine, crs: str = "EPSG:32633") -> Path:
    """A lossless JPEG-2000 file of (y, x) or (bands, y, x), without a nodata tag, as in a SAFE."""
    values = values[None] if values.ndim == 2 else values
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    profile = {"driver": "JP2OpenJPEG", "count": bands, "height": height, "width": width, "dtype": values.dtype}
    lossless = {"QUALITY": "100", "REVERSIBLE": "YES", "YCBCR420": "NO"}
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile, **lossless) as file:
        file.write(values)
    return path


def write_safe(
    root: Path,
    transform: Affine,
    *,
    product: str = COMPACT,
    granules: tuple[str, ...] = ("L2A_T33UVP_A036282_20220603T101559",),
    values: Mapping[str, int] = RGB,
    baseline: str = "04.00",
    offsets: Mapping[str, int] | None = None,
    quantification: int = 10_000,
    cloud: float = 4.25,
    metadata: bool = True,
    prefix: str = "T33UVP_20220603T101031",
    crs: str = "EPSG:32633",
    px: int = 100,
    empty_rows: slice = slice(0, 0),
) -> Path:
    """A complete L2A product: bands at 10, 20 and 60 m, SCL, TCI, AOT, WVP, PVI and masks; returns its folder."""
    folder = root / f"{product}.SAFE"
    for granule in granules:
        images, quality = folder / "GRANULE" / granule / "IMG_DATA", folder / "GRANULE" / granule / "QI_DATA"
        stem = granule.rpartition("_N0")[0] if "_TL_" in granule else prefix
        for metres in (10, 20, 60):
            side, grid = px * 10 // metres, transform * Affine.scale(metres / 10)
            layers = {"AOT": 120, "WVP": 1500, **(values if metres == 10 else dict.fromkeys(values, 9))}
            for name, value in layers.items():
                flat = np.full((side, side), value, np.uint16)
                flat[empty_rows] = 0
                write_jp2(images / f"R{metres}m" / f"{stem}_{name}_{metres}m.jp2", flat, grid, crs)
            picture = np.full((3, side, side), 90, np.uint8)
            write_jp2(images / f"R{metres}m" / f"{stem}_TCI_{metres}m.jp2", picture, grid, crs)
        classes = np.full((px // 2, px // 2), 4, np.uint8)
        write_jp2(images / "R20m" / f"{stem}_SCL_20m.jp2", classes, transform * Affine.scale(2), crs)
        mask = np.full((px, px), 6, np.uint8)
        for name in ("MSK_DETFOO_B02", "MSK_DETFOO_B04", "MSK_QUALIT_B03"):
            write_jp2(quality / f"{name}.jp2", mask, transform, crs)
        write_jp2(quality / "MSK_CLDPRB_20m.jp2", mask[: px // 2, : px // 2], transform * Affine.scale(2), crs)
        write_jp2(quality / f"{stem}_PVI.jp2", np.full((3, 34, 34), 80, np.uint8), transform * Affine.scale(3), crs)
        if metadata:
            name = "MTD_TL.xml" if "_TL_" not in granule else f"{stem.replace('_MSI_', '_MTD_')}.xml"
            (folder / "GRANULE" / granule / name).write_text(tile_xml(cloud), encoding="utf-8")
    if metadata:
        name = "MTD_MSIL2A.xml" if "_USER_" not in product else f"{product.replace('PRD_MSI', 'MTD_SAF')}.xml"
        text = product_xml(product, baseline, offsets, quantification)
        (folder / name).write_text(text, encoding="utf-8-sig")
    (folder / "HTML").mkdir(parents=True)
    (folder / "HTML" / "banner_1.png").write_bytes(b"\x89PNG")
    return folder


def product_xml(product: str, baseline: str, offsets: Mapping[str, int] | None, quantification: int) -> str:
    """`MTD_MSIL2A.xml` with the elements of the real one that tell facts of the product; older ones have others."""
    old = "L2A_" if baseline < "02.07" else ""
    start = "2016-05-04T10:59:17.027Z" if old else "2022-06-03T10:10:31.024Z"
    numbered = {_BANDS.index(band): offset for band, offset in (offsets or {}).items()}
    rows = "".join(f'<BOA_ADD_OFFSET band_id="{number}">{v}</BOA_ADD_OFFSET>' for number, v in numbered.items())
    offset_list = f"<BOA_ADD_OFFSET_VALUES_LIST>{rows}</BOA_ADD_OFFSET_VALUES_LIST>" if offsets else ""
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
  <n1:General_Info>
    <{old}Product_Info>
      <PRODUCT_START_TIME>{start}</PRODUCT_START_TIME>
      <PRODUCT_URI>{product}.SAFE</PRODUCT_URI>
      <PROCESSING_LEVEL>Level-2A{"p" if old else ""}</PROCESSING_LEVEL>
      <PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
    </{old}Product_Info>
    <{old}Product_Image_Characteristics>
      <QUANTIFICATION_VALUES_LIST>
        <{old}BOA_QUANTIFICATION_VALUE unit="none">{quantification}</{old}BOA_QUANTIFICATION_VALUE>
        <{old}AOT_QUANTIFICATION_VALUE unit="none">1000.0</{old}AOT_QUANTIFICATION_VALUE>
      </QUANTIFICATION_VALUES_LIST>
      {offset_list}
    </{old}Product_Image_Characteristics>
  </n1:General_Info>
  <n1:Quality_Indicators_Info><Cloud_Coverage_Assessment>55.5</Cloud_Coverage_Assessment></n1:Quality_Indicators_Info>
</n1:Level-2A_User_Product>
"""


def tile_xml(cloud: float) -> str:
    """`MTD_TL.xml` of a granule, as far as it tells facts of the tile."""
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_Tile_ID xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/S2_PDI_Level-2A_Tile_Metadata.xsd">
  <n1:General_Info><SENSING_TIME metadataLevel="Standard">2022-06-03T10:15:59.123Z</SENSING_TIME></n1:General_Info>
  <n1:Quality_Indicators_Info><Image_Content_QI>
    <CLOUDY_PIXEL_PERCENTAGE>{cloud}</CLOUDY_PIXEL_PERCENTAGE>
  </Image_Content_QI></n1:Quality_Indicators_Info>
</n1:Level-2A_Tile_ID>
"""


def zip_folder(folder: Path, path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    """Pack a product as it is downloaded: its folder is in the archive, images are stored as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, Path(folder.name) / file.relative_to(folder))
    return path
