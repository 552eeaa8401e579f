"""Heat maps of words over one place: overlapping windows are embedded, compared, and spread over the place's pixels.

Patch tokens would be cheaper, but a token of these networks says little about what lies under it (docs/design/0016).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rs_embed.api import fetch_patch, get_embeddings_batch
from rs_embed.arguments import check_sensor
from rs_embed.arrays import BoolArray, FloatArray
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.text import check_texts, load_text_embedder, unit
from rs_embed.embedding import Embedding
from rs_embed.errors import ModelError, NoImageryError, SpecError, naming_missing
from rs_embed.geotiff import write_geotiff
from rs_embed.grid import epsg_of, lonlat_text, map_url, place_geobox, transformer
from rs_embed.html import Fact, Link, Picture, result_html
from rs_embed.inspection import LOW_FRAC, inspect_patch, save_quicklook
from rs_embed.patch import Patch
from rs_embed.pictures import png_of, quicklook
from rs_embed.providers.base import Provider
from rs_embed.providers.registry import resolve
from rs_embed.search.query import word_probabilities, word_query
from rs_embed.search.results import LIKELY, NOTHING_LIKE_IT
from rs_embed.specs import OutputSpec, Place, SensorSpec, TemporalSpec

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from PIL import Image

WINDOW_M = 640.0
"""Side of a window: the size that the bundled model was trained on, and the smallest that shows it a shape."""
_SHOWN_PX = 220
_STEPS_PER_WINDOW = 4
"""With steps of half a window the best pixel is right less often (96 % against 98)."""
_MIN_OBSERVED = 0.75
_MAX_WINDOWS = 10_000
_MEASURED_PX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Map of words over one place: each pixel is the mean of the windows over it, weighted by their distance."""

    probability: FloatArray
    """(y, x), 0…1: probability of the words against the whole background vocabulary; NaN where nothing was observed."""
    score: FloatArray
    """(y, x): cosine with the words minus their background, of which only the order means anything; NaN likewise."""
    geobox: GeoBox
    best_pixel: tuple[int, int]
    """Row and column of the highest `probability` to 0.1 %, then `score`; the central one of equals."""
    dn: FloatArray
    """(3, y, x) imagery, NaN where not observed."""
    meta: dict[str, Any]
    """JSON-ready description: words, model, weights, window, scenes, warnings."""

    @property
    def best(self) -> tuple[float, float, float]:
        """Longitude, latitude and probability of `best_pixel`."""
        row, column = self.best_pixel
        x, y = self.geobox.transform * (column + 0.5, row + 0.5)
        lon, lat = transformer(epsg_of(self.geobox), 4326).transform(x, y)
        return float(lon), float(lat), float(self.probability[row, column])

    @property
    def notice(self) -> str | None:
        """Sentence for a place where nothing resembles the words; None for others."""
        return NOTHING_LIKE_IT if self.best[2] < LIKELY else None

    @property
    def likely_frac(self) -> float:
        """Share of the observed pixels where the words are likely."""
        return float((self.probability[~np.isnan(self.probability)] >= LIKELY).mean())

    def plot(self) -> Image.Image:
        """Draw the imagery, and beside it the same under the probability."""
        from rs_embed.search.draw import heat_map_sheet

        return heat_map_sheet(self).image

    def __repr__(self) -> str:
        lon, lat, probability = self.best
        height, width = self.geobox.shape
        best = f"best {probability:.0%} at {lonlat_text(lon, lat)}"
        return f"HeatMap({self.meta['text']}, {width} x {height} px, {best}, {self.meta['model']})"

    def _repr_html_(self) -> str:
        from rs_embed.search.draw import overlaid

        lon, lat, probability = self.best
        base = quicklook(self.dn, side_px=_SHOWN_PX)
        base.thumbnail((_SHOWN_PX, _SHOWN_PX))
        facts: list[Fact] = [
            ("likeliest", Link(f"{probability:.0%} at {lonlat_text(lon, lat)}", map_url(lon, lat))),
            ("likely area", f"{self.likely_frac:.0%} of what was observed"),
            ("windows", f"{self.meta['windows']} of {self.meta['window_m']:g} m"),
            ("imagery", f"{self.meta['backend']}, {len(self.meta['scenes'])} scene(s)"),
            ("model", self.meta["model"]),
        ]
        pictures = [Picture(png_of(image), _SHOWN_PX) for image in (base, overlaid(base, self.probability))]
        remarks = [*([self.notice] if self.notice else []), *self.meta["warnings"]]
        return result_html(f"Where is “{', '.join(self.meta['text'])}”?", facts, pictures, remarks)

    def to_geotiff(self, path: str | Path) -> Path:
        """Write `probability` and `score` as the two float32 bands of a GeoTIFF with nodata NaN, atomically.

        Args:
            path: file to write; its folder exists.
        """
        return write_geotiff(
            path,
            np.stack([self.probability, self.score]),
            crs=f"EPSG:{epsg_of(self.geobox)}",
            transform=self.geobox.transform,
            names=("probability", "score"),
            tags={"text": ", ".join(self.meta["text"]), "model": self.meta["model"]},
        )


@naming_missing()
def heat_map(
    model: str,
    text: str | Sequence[str],
    *,
    spatial: Place,
    temporal: TemporalSpec,
    negative: str | Sequence[str] = (),
    window_m: float = WINDOW_M,
    sensor: SensorSpec | None = None,
    backend: str | Provider = "auto",
    device: str = "auto",
    checkpoint: str | Path | None = None,
    precision: str = "fp32",
    progress: bool = False,
) -> HeatMap:
    """Map where in a place the words are, by comparing them with windows every quarter of `window_m`.

    Args:
        model: a name of `list_models()`.
        text: words for what to look for; several are meant together.
        spatial: the place, at least one window wide and high.
        temporal: a time range.
        negative: words for what not to look for; they change the score, not the probability.
        window_m: side of a window in ground metres, which is also the resolution of the map.
        sensor: what to fetch; the model's defaults when None.
        backend: source of the imagery.
        device: "auto", "cpu", "cuda", …
        checkpoint: hub repo or path; the model's default when None.
        precision: as for `get_embedding`.
        progress: show a bar on stderr.

    Raises:
        SpecError: for a window larger than the place or under two pixels, or more than 10,000 windows.
        ModelError: for an empty text, or words none of which the model knows.
        NoImageryError: for a place where no window is at least three quarters observed.
        ProviderError: for imagery that cannot be read.

    Examples:
        >>> from rs_embed import PointBuffer, TemporalSpec, heat_map, list_samples
        >>> sample = list_samples()[0]
        >>> place, month = PointBuffer(sample.lon, sample.lat, 400), TemporalSpec.range(sample.start, sample.end)
        >>> heat = heat_map("clip_eurosat_s2rgb", "forest", spatial=place, temporal=month, backend="sample")
        >>> heat.probability.shape
        (80, 80)
    """
    sensor = check_sensor(sensor)
    checkpoint = sensor.checkpoint if checkpoint is None else checkpoint
    wanted, unwanted = check_texts(text), check_texts(negative) if negative else []
    geobox = place_geobox(spatial, sensor.scale_m)
    window = _window_px(window_m, sensor.scale_m, geobox)
    texts = load_text_embedder(find_card(model), checkpoint=checkpoint, device=device)
    if not any(texts.reads(words) for words in wanted):
        raise ModelError(f"{texts.model} knows no word of {', '.join(map(repr, wanted))}: use other words")
    remarks = chain.from_iterable(map(texts.remarks, wanted + unwanted))
    provider = resolve(backend)
    patch = fetch_patch(spatial, temporal, sensor, provider)
    corners = _window_corners(patch.valid, window)
    # Gaps are filled here, so that one warning about the place replaces one for each window.
    filled = np.where(np.isnan(patch.dn), np.float32(sensor.fill_value), patch.dn)
    embeddings = get_embeddings_batch(
        model,
        input_chws=[filled[:, y : y + window, x : x + window] for y, x in corners],
        sensor=sensor,
        output=OutputSpec.pooled("projected"),
        device=device,
        checkpoint=checkpoint,
        precision=precision,
        progress=progress,
    )
    vectors = np.stack([np.asarray(e.data, np.float32) for e in embeddings if isinstance(e, Embedding)])  # all are
    values = word_probabilities(texts, wanted, vectors), unit(vectors) @ word_query(texts, wanted, unwanted)
    probability, score = (np.where(patch.valid, _spread(v, corners, window, patch.valid.shape), np.nan) for v in values)
    return HeatMap(
        probability=probability,
        score=score,
        best_pixel=_best_pixel(probability, score),
        geobox=geobox,
        dn=patch.dn,
        meta={
            "text": wanted,
            "negative": unwanted,
            "model": model,
            "weights_sha256": texts.weights_sha256,
            "precision": precision,
            "window_m": window * sensor.scale_m,
            "windows": len(corners),
            **_imagery_facts(patch, provider, temporal),
            "warnings": [*remarks, *_warnings(patch, sensor, window)],
        },
    )


def _imagery_facts(patch: Patch, provider: Provider, temporal: TemporalSpec) -> dict[str, Any]:
    return {
        "epsg": epsg_of(patch.geobox),
        "backend": provider.name,
        "temporal": asdict(temporal),
        "scenes": [asdict(scene) for scene in patch.scenes],
        **{key: getattr(patch, key) for key in ("clear_frac", "n_clear", "shown_clear_frac")},
    }


def _window_px(window_m: float, scale_m: float, geobox: GeoBox) -> int:
    """Return the side of a window in pixels, or raise a SpecError where it does not suit the place."""
    height, width = geobox.shape
    place = f"{width * scale_m:g} x {height * scale_m:g} m"
    if not (np.isfinite(window_m) and window_m >= 2 * scale_m):
        raise SpecError(f"window_m must be at least two pixels ({2 * scale_m:g} m), got {window_m!r}")
    pixels = round(window_m / scale_m)
    step = max(pixels // _STEPS_PER_WINDOW, 1)
    if (count := (height // step) * (width // step)) > _MAX_WINDOWS:
        raise SpecError(
            f"windows of {window_m:g} m on a place of {place} are some {count:,}, and at most {_MAX_WINDOWS:,} are "
            "embedded: take larger windows or a smaller place"
        )
    if pixels > min(height, width):
        raise SpecError(
            f"the place is {place}, less than one window of {window_m:g} m: take a larger place or a smaller window_m"
        )
    return pixels


def _warnings(patch: Patch, sensor: SensorSpec, window: int) -> Iterator[str]:
    """Yield all warnings about the imagery, and save its quicklook if the sensor asks for one."""
    report = inspect_patch(patch, sensor, name="heat_map")
    if sensor.check_save_dir is not None:
        save_quicklook(patch.dn[:3], sensor.check_save_dir, "provider_patch", report["issues"])
    yield from report["warnings"]
    if LOW_FRAC <= (observed := float(patch.valid.mean())) < 1:
        yield f"missing pixels: only {observed:.0%} of the place was observed; the others have no value"
    if window < _MEASURED_PX:
        yield (
            f"windows of {window} px show the model little, and it is too sure of what it sees: only windows of "
            f"{_MEASURED_PX} px were measured"
        )


def _window_corners(valid: BoolArray, window: int) -> list[tuple[int, int]]:
    """Return the first row and column of each window that is at least three quarters observed."""
    height, width = valid.shape
    starts = product(_starts(height, window), _starts(width, window))
    corners = [(y, x) for y, x in starts if valid[y : y + window, x : x + window].mean() >= _MIN_OBSERVED]
    if not corners:
        raise NoImageryError("no window of the place is observed by three quarters: take a longer time range")
    return corners


def _starts(length: int, window: int) -> Iterator[int]:
    """Yield window starts along an axis, every quarter of a window; the last one is shifted in to fit."""
    last = length - window
    yield from range(0, last, max(window // _STEPS_PER_WINDOW, 1))
    yield last


def _best_pixel(probability: FloatArray, score: FloatArray) -> tuple[int, int]:
    order = np.where(np.isnan(score), -np.inf, np.round(probability.astype(np.float64), 3) * 1e3 + score)
    equals = np.argwhere(order >= order.max() - 1e-4)  # pixels near an edge lie in one window alone and are equal
    row, column = equals[np.abs(equals - equals.mean(axis=0)).sum(axis=1).argmin()]
    return int(row), int(column)


def _spread(values: FloatArray, corners: Sequence[tuple[int, int]], window: int, shape: tuple[int, int]) -> FloatArray:
    """Return the mean (y, x) of the windows over each pixel, weighted by a tent that falls off from their centres."""
    slope = window / 2 - np.abs(np.arange(window) + 0.5 - window / 2)
    tent = np.outer(slope, slope)
    total, weight = np.zeros(shape), np.zeros(shape)
    for value, (y, x) in zip(values, corners, strict=True):
        total[y : y + window, x : x + window] += value * tent
        weight[y : y + window, x : x + window] += tent
    with np.errstate(invalid="ignore"):
        spread: FloatArray = (total / weight).astype(np.float32)  # 0 / 0 is NaN: pixels without a window
    return spread
