"""What a user meets before the first request: imports, missing packages, the files that are installed."""

from __future__ import annotations

import runpy
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import rs_embed

HEAVY = ("torch", "ee", "rasterio", "ray", "pandas", "xarray", "numpy", "pyarrow", "huggingface_hub")
CONTRACT = {
    *("get_embedding", "get_embeddings_batch", "inspect_provider_patch", "inspect_gee_patch", "list_models"),
    *("describe_model", "list_samples", "BBox", "PointBuffer", "TemporalSpec", "SensorSpec", "OutputSpec"),
    *("Embedding", "EmbeddingFailure", "RSEmbedError", "SpecError", "ProviderError", "NoImageryError", "ModelError"),
    *("CheckpointError", "UnknownModelError"),
}


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def test_importing_costs_nothing_heavy():
    code = f"import sys, rs_embed; print([m for m in {HEAVY} if m in sys.modules], len(sys.modules))"
    heavy, _, count = python(code).stdout.strip().rpartition(" ")
    assert heavy == "[]"
    assert int(count) < 150  # the interpreter alone has about 60


@pytest.mark.parametrize(
    "use",
    ["list_models()", "describe_model('remoteclip')", "PointBuffer(1, 2, 3)", "NoImageryError()", "OutputSpec.grid()"],
)
def test_models_and_specs_need_no_torch(use):
    name = use.partition("(")[0].partition(".")[0]
    code = f"import sys; from rs_embed import {name}; {use}; print([m for m in {HEAVY} if m in sys.modules])"
    assert python(code).stdout == "[]\n"


def test_every_public_name_is_there():
    assert set(rs_embed.__all__) >= CONTRACT
    for name in rs_embed.__all__:
        assert getattr(rs_embed, name) is not None
    assert set(dir(rs_embed)) >= CONTRACT
    with pytest.raises(AttributeError, match="nonsense"):
        rs_embed.nonsense  # noqa: B018


def test_errors_are_related_as_promised():
    assert issubclass(rs_embed.NoImageryError, rs_embed.ProviderError)
    assert issubclass(rs_embed.CheckpointError, rs_embed.ModelError)
    assert issubclass(rs_embed.UnknownModelError, rs_embed.ModelError)
    for name in ("SpecError", "ProviderError", "ModelError"):
        assert issubclass(getattr(rs_embed, name), rs_embed.RSEmbedError)


def test_the_package_is_typed_and_brings_its_weights():
    files = resources.files("rs_embed")
    assert files.joinpath("py.typed").is_file()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert files.joinpath("embedders", "clip_eurosat", name).is_file()


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
import rs_embed
from rs_embed import RSEmbedError
try:
    if sys.argv[1] == "tokenizers":  # only texts need it
        rs_embed.embed_text("clip_eurosat_s2rgb", "river")
    sample = rs_embed.list_samples()[0]
    rs_embed.get_embedding(
        "clip_eurosat_s2rgb" if sys.argv[1] != "huggingface_hub" else "remoteclip_s2rgb",
        spatial=rs_embed.PointBuffer(sample.lon, sample.lat, 600),
        temporal=rs_embed.TemporalSpec.range(sample.start, sample.end),
        backend="sample",
    )
except RSEmbedError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("torch", "ModelError"),
        ("safetensors", "ModelError"),
        ("huggingface_hub", "ModelError"),
        ("tokenizers", "ModelError"),
        ("PIL", "ModelError"),
        ("rasterio", "ProviderError"),
        ("odc", "ProviderError"),
        ("shapely", "ProviderError"),
    ],
)
def test_a_missing_package_is_one_error_with_its_pip_line(module, kind):
    done = python(BLOCKED, module)
    assert done.stderr == ""
    assert done.stdout.startswith(kind)
    assert "pip install rs-embed-remoteclip" in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1


def test_the_command_line_says_it_too():
    code = BLOCKED.partition("import rs_embed")[0] + (
        "from rs_embed.cli.main import main\n"
        "main(['embed', '--model', 'clip_eurosat_s2rgb', '--backend', 'sample', '--point', '13.72', '48.22',\n"
        "  '--buffer-m', '600', '--start', '2017-06-01', '--end', '2017-07-01'])\n"
    )
    done = python(code, "torch")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "pip install rs-embed-remoteclip" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_third_party_files_of_the_page_are_those_that_the_build_names():
    root = Path(__file__).parent.parent
    page_files = runpy.run_path(str(root / "web" / "page_files.py"))
    if not page_files["is_made"]():
        pytest.skip("the files are of older versions: python web/page_files.py makes them anew")
    vendor = page_files["TARGET"]
    sizes = {file.relative_to(vendor).as_posix(): file.stat().st_size for file in vendor.rglob("*") if file.is_file()}
    assert {"maplibre-gl/LICENSE.txt", "topojson-client/LICENSE", "world-atlas/LICENSE"} < set(sizes)
    assert sizes["world-atlas/countries-50m.json"] < 1e6
    assert sizes["towns.tsv.xz"] < 1.5e6


def test_a_town_has_the_names_that_people_type():
    lines = runpy.run_path(str(Path(__file__).parent.parent / "web" / "page_files.py"))["town_lines"]
    names = ["Wien", "wien", "VIENNA", "VIE", "Vídeň", "Videň", "Вена", "a|b"]
    town = {"geonameid": 1, "countrycode": "AT", "admin1code": "09", "latitude": 48.20849, "longitude": 16.37208}
    large = town | {"name": "Vienna", "population": 1_691_468, "alternatenames": names}
    medium = town | {"name": "Graz", "population": 300_000, "admin1code": "ST", "alternatenames": ["Gradec", "Грац"]}
    small = town | {"name": "Tulln", "population": 12_421, "alternatenames": ["Tulln an der Donau"]}
    assert list(lines([small, medium, large])) == [
        "Vienna\tAT\t\t48.2085\t16.3721\t1691468\tWien|Vídeň|Вена\n",
        "Graz\tAT\tST\t48.2085\t16.3721\t300000\tGradec\n",
        "Tulln\tAT\t\t48.2085\t16.3721\t12421\t\n",
    ]
