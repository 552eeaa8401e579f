"""Request of a dataset that no model or imagery belongs to, for benchmarks of planning and writing."""

from __future__ import annotations

from rs_embed.export.request import ExportRequest
from rs_embed.specs import OutputSpec, SensorSpec


def request_of(model: str, **values: object) -> ExportRequest:
    """The request of a dataset without weights or imagery."""
    usual = {
        "model": model,
        "sensor": SensorSpec(),
        "output": OutputSpec.pooled(),
        "backend": "fake",
        "input_prep": "resize",
        "checkpoint": None,
        "precision": "fp32",
        "weights_sha256": "0" * 64,
        "dtype": "float32",
        "normalise": False,
        "thumbnails": False,
        "grid": False,
        "columns": (),
    }
    return ExportRequest(**{**usual, **values})
