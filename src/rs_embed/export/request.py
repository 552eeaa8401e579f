"""The request of a dataset: one canonical JSON, equal in every process. A folder holds one request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rs_embed.embedding import Request
from rs_embed.errors import SpecError
from rs_embed.specs import InputPrep, OutputSpec, Place, SensorSpec, TemporalSpec, VectorType, check_choice

BESIDE_WEIGHTS = ("network", "tokenizer_sha256")
"""Fields that files beside the weights decide; one that either side does not know is no difference."""


class VectorLengths(NamedTuple):
    """Lengths of the columns `embedding` and `embedding_projected`."""

    embedding: int
    projected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """Everything that determines the rows of a dataset, except the places and time ranges."""

    model: str
    sensor: SensorSpec
    output: OutputSpec
    backend: str
    input_prep: InputPrep
    checkpoint: str | None
    precision: str
    weights_sha256: str | None
    dtype: VectorType
    normalise: bool
    thumbnails: bool
    grid: bool
    columns: tuple[tuple[str, str], ...]  # names and types of the user's columns
    chip_m: float | None = None  # side of all places; None for boxes, and squares of several sizes
    network: str | None = None  # what a config beside the weights decides; None in datasets of earlier versions
    tokenizer_sha256: str | None = None  # of the tokenizer beside the weights, by which words are searched

    def __post_init__(self) -> None:
        if self.output.mode == "grid":
            raise SpecError(
                "a dataset's column holds vectors: take output pooled, and grid=True (--grid) for tokens too"
            )
        check_choice("input_prep", self.input_prep, ("resize", "tile"))
        check_choice("dtype", self.dtype, ("float32", "float16"))
        for name, kinds in _KINDS.items():
            if not isinstance(getattr(self, name), kinds):
                raise SpecError(f"{name} cannot be {getattr(self, name)!r:.60}")

    def for_place(self, place: Place, temporal: TemporalSpec) -> Request:
        """Return the request of one place, equal to that of `get_embeddings_batch`."""
        return Request(
            place=place,
            temporal=temporal,
            sensor=self.sensor,
            output=self.output,
            input_prep=self.input_prep,
            backend=self.backend,
            model=self.model,
            precision=self.precision,
            weights_sha256=self.weights_sha256,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the request as JSON values, without the options of inspection, which change no pixel."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        values["sensor"] = {k: v for k, v in values["sensor"].items() if not k.startswith("check_")}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExportRequest:
        """Return the request that `to_dict` gave as JSON values; a ValueError refuses others."""
        try:
            sensor = SensorSpec(**{**values["sensor"], "bands": tuple(values["sensor"]["bands"])})
            columns = tuple((str(name), str(kind)) for name, kind in values["columns"])
            return cls(**{**values, "sensor": sensor, "output": OutputSpec(**values["output"]), "columns": columns})
        except (SpecError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"its request does not fit this version: {error}") from error

    def sha256(self) -> str:
        """Return the digest of the canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


_TEXT, _OPTIONAL = (str,), (str, type(None))
_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "backend", "precision"), _TEXT),
    **dict.fromkeys(("checkpoint", "weights_sha256", *BESIDE_WEIGHTS), _OPTIONAL),
    **dict.fromkeys(("normalise", "thumbnails", "grid"), (bool,)),
    "chip_m": (float, int, type(None)),
}
"""Types of the values that a manifest may hold."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield a text such as `sensor.cloudy_pct: 30 in the folder, 20 now` for each value that differs."""
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{path}{key}.")
        elif a != b:
            yield f"{path}{key}: {json.dumps(a)} in the folder, {json.dumps(b)} now"
