"""The model of a run: its card, the sensor it takes, and its weights, checked in the same order by every caller."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rs_embed.arguments import check_sensor
from rs_embed.clip.weights import local_file
from rs_embed.digest import digest_of
from rs_embed.embedders.cards import ModelCard, find_card, shipped_folder
from rs_embed.errors import CheckpointError, ModelError, NoImageryError, ProviderError, missing_core
from rs_embed.providers.base import PatchRequest, Provider
from rs_embed.sentinel2 import RGB_BANDS
from rs_embed.specs import OutputSpec, SensorSpec

if TYPE_CHECKING:
    from rs_embed.embedders.onthefly_remoteclip import RemoteClipEmbedder


def check_model(model: str, sensor: SensorSpec | None) -> tuple[ModelCard, SensorSpec]:
    """Return a model's card and the sensor, the default one for None; refuse bands that the model does not take."""
    card, sensor = find_card(model), check_sensor(sensor)
    if sensor.bands != RGB_BANDS:
        wanted = f"the bands {RGB_BANDS} (red, green, blue) in this order"
        raise ModelError(f"{card.name} takes {wanted}, got {sensor.bands}")
    return card, sensor


def load_model(
    card: ModelCard,
    sensor: SensorSpec,
    output: OutputSpec,
    *,
    checkpoint: object | None,
    device: str,
    precision: str,
    provider: Provider | None,
    patches: Sequence[PatchRequest],
) -> RemoteClipEmbedder:
    """Load a model's weights and check that it can give the output.

    torch is imported here, after all checks that do not need it. The digest of the weights is computed meanwhile.
    Weights that are missing are a CheckpointError, or a NoImageryError where no place has imagery either.
    """
    reference = sensor.checkpoint if checkpoint is None else checkpoint
    if isinstance(reference, (str, Path)) and not shipped_folder(str(reference)):
        with suppress(CheckpointError, OSError):  # loading reports what is wrong with the file
            if file := local_file(str(reference)):
                digest_of(file)
    try:
        from rs_embed.embedders.loading import load_embedder
    except ModuleNotFoundError as error:
        raise missing_core(error) or error from error
    try:
        embedder = load_embedder(card, checkpoint=reference, device=device, precision=precision)
    except CheckpointError:
        if provider is not None:
            _refuse_without_imagery(provider, patches)
        raise
    embedder.pooling(output)
    return embedder


def _refuse_without_imagery(provider: Provider, patches: Sequence[PatchRequest]) -> None:
    try:
        plan = provider.plan(patches)
        if patches and len(plan.places_without_scene) == len(patches):
            [(_, result)] = provider.fetch(patches[:1])
            if isinstance(result, NoImageryError):
                raise result
    except NoImageryError:
        raise
    except ProviderError:
        return  # the missing weights are the clearer fault
