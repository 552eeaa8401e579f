"""Options that several commands share, declared once; a command takes a group of them as one dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from typer import Argument, Option

from rs_embed.errors import SpecError
from rs_embed.specs import CloudMask, Composite, InputPrep, OnLostScene, Pooling, SensorSpec, TemporalSpec

if TYPE_CHECKING:
    from rs_embed.providers.base import Provider

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def choice(values: object, help: str) -> Any:
    """Declare an option for a `Literal`; the library checks the word and raises the error that Python callers see."""
    words = [str(word) for word in get_args(values)]
    return Option(metavar="|".join(words), help=help, parser=str, autocompletion=lambda: words)


PlacesFile = Annotated[Path | None, Argument(metavar="[FILE]", help="Places: CSV, GeoJSON or GeoParquet.")]
Box = Annotated[tuple[float, float, float, float] | None, Option(metavar="W S E N", help="Degrees; W > E across 180°.")]
BufferM = Annotated[float | None, Option(help="Half the side of the square, in ground metres.")]
Chip = Annotated[float | None, Option(help="The whole side: --chip M equals --buffer-m M/2.")]
Model = Annotated[str, Option("--model", help="A name that `rs-embed models` lists.")]
Prep = Annotated[InputPrep, choice(InputPrep, "Resize the whole place, or tile it into chips of 224 px.")]
Vector = Annotated[Pooling | None, choice(Pooling, "Mean of the tokens (768 numbers) or CLIP projection (512).")]
Dataset = Annotated[Path, Argument(metavar="DATASET", help="A folder that `rs-embed export` wrote.")]
Port = Annotated[int, Option(help="Port of the web page.", min=1, max=65535)]
Negative = Annotated[list[str] | None, Option(metavar="TEXT", help="Words for what to avoid; repeatable.")]
LostScene = Annotated[OnLostScene, choice(OnLostScene, "Place with a scene that cannot be read: keep it, or fail it.")]
Json = Annotated[bool, Option("--json", help="Print JSON for programs.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """One place and its time range; a command may read the places from a file instead."""

    point: Annotated[tuple[float, float] | None, Option(metavar="LON LAT", help="A point, longitude first.")] = None
    buffer_m: BufferM = None
    chip: Chip = None
    bbox: Box = None
    start: Annotated[str, Option(metavar="YYYY-MM-DD", help="First day.")]
    end: Annotated[str, Option(metavar="YYYY-MM-DD", help="Day after the last.")]

    def time_range(self) -> TemporalSpec:
        """Return the time range."""
        return TemporalSpec.range(self.start, self.end)


@dataclass(frozen=True, slots=True)
class OptionalTimeOptions:
    """A time range that may be left out."""

    start: Annotated[str | None, Option(metavar="YYYY-MM-DD", help="First day.")] = None
    end: Annotated[str | None, Option(metavar="YYYY-MM-DD", help="Day after the last.")] = None

    def time_range(self) -> TemporalSpec | None:
        """Return the time range, or None where neither day is given; refuse one day alone."""
        if self.start is not None and self.end is not None:
            return TemporalSpec.range(self.start, self.end)
        if self.start is not None or self.end is not None:
            raise SpecError(f"--start and --end come together, got only {'--start' if self.start else '--end'}")
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """The source of the imagery, and the fields of a `SensorSpec`."""

    backend: Annotated[
        str,
        Option(help="sample, local:FOLDER, earth-search (auto), planetary-computer, cdse, gee, stac:URL#COLLECTION."),
    ] = "auto"
    scale_m: Annotated[float, Option(help="Ground metres per pixel.")] = 10
    cloudy_pct: Annotated[float, Option(help="Leave out scenes with more cloud than this.")] = 30
    composite: Annotated[Composite, choice(Composite, "Way to merge scenes into one image.")] = "median"
    cloud_mask: Annotated[CloudMask | None, choice(CloudMask, "Leave out the pixels that SCL calls cloudy.")] = None
    max_scenes: Annotated[int | None, Option(help="Use only the N least cloudy scenes.")] = None

    def sensor(self, check_save_dir: Path | None = None) -> SensorSpec:
        """Return the sensor; a bad value is its SpecError."""
        return SensorSpec(
            scale_m=self.scale_m,
            cloudy_pct=self.cloudy_pct,
            composite=self.composite,
            cloud_mask=self.cloud_mask,
            max_scenes=self.max_scenes,
            check_save_dir=None if check_save_dir is None else str(check_save_dir),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageryOptions(SourceOptions):
    """A source of imagery that a command fetches from."""

    cache: Annotated[Path | None, Option(help="Keep fetched imagery in this folder and reuse it next time.")] = None

    def provider(self) -> str | Provider:
        """Return the value for `backend=`: the backend's name, or a provider that caches."""
        from rs_embed.providers.registry import resolve

        return self.backend if self.cache is None else resolve(self.backend, self.cache)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """The model and the way it runs."""

    name: Model = "remoteclip_s2rgb"
    checkpoint: Annotated[str | None, Option(help="Weights: a hub repo[@revision][:file], a folder or a file.")] = None
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto"
    precision: Annotated[str, Option(help="fp32, bf16, int8 (CPU) or fp16 (CUDA).")] = "fp32"


class Interrupted(Exception):
    """Command that Ctrl-C ended; its text says what is kept."""


def check_ending(option: str, path: Path, allowed: Sequence[str]) -> None:
    """Refuse a file name with an unknown ending before anything is fetched."""
    if path.suffix.lower() not in allowed:
        raise SpecError(f"{option} {path} must end in one of {', '.join(allowed)}")


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with one parameter for each field of its dataclass parameters: Typer knows no dataclasses."""
    declared = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in declared if is_dataclass(p.annotation)}
    parameters: list[inspect.Parameter] = []
    for parameter in declared:
        group = groups.get(parameter.name)
        parameters += [parameter] if group is None else inspect.signature(group, eval_str=True).parameters.values()

    def run(**values: Any) -> None:
        try:
            run_groups(**values)
        except KeyboardInterrupt as error:  # Typer would exit without a word
            raise Interrupted(str(error)) from None

    def run_groups(**values: Any) -> None:
        built = {name: group(**{f.name: values.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        command(**built, **values)

    typed: Any = run
    typed.__signature__ = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters])
    typed.__doc__ = command.__doc__
    return run
