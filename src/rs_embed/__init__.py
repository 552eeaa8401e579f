"""RemoteCLIP embeddings of Sentinel-2 imagery, for any place and time range.

Names are imported when they are first used, so that `import rs_embed` takes little time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rs_embed.api import fetch_patch as fetch_patch
    from rs_embed.api import get_embedding as get_embedding
    from rs_embed.api import get_embeddings_batch as get_embeddings_batch
    from rs_embed.api import inspect_gee_patch as inspect_gee_patch
    from rs_embed.api import inspect_provider_patch as inspect_provider_patch
    from rs_embed.embedders.cards import describe_model as describe_model
    from rs_embed.embedders.cards import list_models as list_models
    from rs_embed.embedding import Embedding as Embedding
    from rs_embed.embedding import EmbeddingFailure as EmbeddingFailure
    from rs_embed.errors import CheckpointError as CheckpointError
    from rs_embed.errors import ModelError as ModelError
    from rs_embed.errors import NoImageryError as NoImageryError
    from rs_embed.errors import ProviderError as ProviderError
    from rs_embed.errors import RSEmbedError as RSEmbedError
    from rs_embed.errors import SpecError as SpecError
    from rs_embed.errors import UnknownModelError as UnknownModelError
    from rs_embed.export.cost import plan_export as plan_export
    from rs_embed.export.dataset import open_dataset as open_dataset
    from rs_embed.export.run import export_embeddings as export_embeddings
    from rs_embed.providers.gee.provider import EarthEngineProvider as EarthEngineProvider
    from rs_embed.providers.local.provider import LocalProvider as LocalProvider
    from rs_embed.providers.sample import list_samples as list_samples
    from rs_embed.providers.stac.provider import StacProvider as StacProvider
    from rs_embed.search.heatmap import heat_map as heat_map
    from rs_embed.search.index import EmbeddingIndex as EmbeddingIndex
    from rs_embed.search.query import text_query as text_query
    from rs_embed.specs import BBox as BBox
    from rs_embed.specs import OutputSpec as OutputSpec
    from rs_embed.specs import PointBuffer as PointBuffer
    from rs_embed.specs import SensorSpec as SensorSpec
    from rs_embed.specs import TemporalSpec as TemporalSpec
    from rs_embed.texts import embed_text as embed_text
    from rs_embed.texts import zero_shot as zero_shot

_HOME = {
    "api": ("fetch_patch", "get_embedding", "get_embeddings_batch", "inspect_gee_patch", "inspect_provider_patch"),
    "embedders.cards": ("describe_model", "list_models"),
    "embedding": ("Embedding", "EmbeddingFailure"),
    "errors": (
        "CheckpointError",
        "ModelError",
        "NoImageryError",
        "ProviderError",
        "RSEmbedError",
        "SpecError",
        "UnknownModelError",
    ),
    "export.dataset": ("open_dataset",),
    "export.run": ("export_embeddings",),
    "export.cost": ("plan_export",),
    "providers.gee.provider": ("EarthEngineProvider",),
    "providers.local.provider": ("LocalProvider",),
    "providers.sample": ("list_samples",),
    "providers.stac.provider": ("StacProvider",),
    "search.heatmap": ("heat_map",),
    "search.index": ("EmbeddingIndex",),
    "texts": ("embed_text", "zero_shot"),
    "search.query": ("text_query",),
    "specs": ("BBox", "OutputSpec", "PointBuffer", "SensorSpec", "TemporalSpec"),
}
_MODULES = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'rs_embed' has no attribute {name!r}")
    try:
        module = import_module(f"rs_embed.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        from rs_embed.errors import missing_core

        raise missing_core(error) or error from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
