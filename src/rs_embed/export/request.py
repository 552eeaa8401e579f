"""What a dataset is made with: one canonical JSON, equal in every process; a folder holds one such request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rs_embed.embedding import Request
from rs_embed.errors import SpecError
from rs_embed.specs import InputPrep, OutputSpec, Place, SensorSpec, TemporalSpec

VectorType = Literal["float32", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """All that decides a dataset's rows, but for the places and time ranges.

    Raises:
        SpecError: for a token grid as the vector, or another number type.
    """

    model: str
    sensor: SensorSpec
    output: OutputSpec
    backend: str
    input_prep: InputPrep
    checkpoint: str | None
    """As the user named it."""
    precision: str
    weights_sha256: str | None
    dtype: VectorType
    """Of the column `embedding`."""
    normalise: bool
    """Whether that column is divided by its L2 norm."""
    thumbnails: bool
    grid: bool
    """Whether token grids are written too."""
    columns: tuple[tuple[str, str], ...]
    """Name and type of the user's columns."""

    def __post_init__(self) -> None:
        if self.output.mode == "grid":
            raise SpecError(
                "a dataset's column holds vectors: take output pooled, and grid=True (--grid) for tokens too"
            )
        if self.input_prep not in ("resize", "tile"):
            raise SpecError(f"input_prep must be 'resize' or 'tile', got {self.input_prep!r}")
        if self.dtype not in ("float32", "float16"):
            raise SpecError(f"dtype must be 'float32' or 'float16', got {self.dtype!r}")

    def of(self, place: Place, temporal: TemporalSpec) -> Request:
        """The request of one place, the same that `get_embeddings_batch` makes."""
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

    def facts(self) -> dict[str, Any]:
        """As JSON; inspection changes no pixel and is left out."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        facts["sensor"] = {k: v for k, v in facts["sensor"].items() if not k.startswith("check_")}
        return facts

    @classmethod
    def parse(cls, facts: Mapping[str, Any]) -> ExportRequest:
        """The inverse of `facts`."""
        sensor = SensorSpec(**{**facts["sensor"], "bands": tuple(facts["sensor"]["bands"])})
        output = OutputSpec(**facts["output"])
        columns = tuple((name, kind) for name, kind in facts["columns"])
        return cls(**{**facts, "sensor": sensor, "output": output, "columns": columns})

    def sha256(self) -> str:
        """Of the canonical JSON."""
        text = json.dumps(self.facts(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """`sensor.cloudy_pct: 30 in the folder, 20 now` for each thing that differs."""
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{path}{key}.")
        elif a != b:
            yield f"{path}{key}: {json.dumps(a)} in the folder, {json.dumps(b)} now"
