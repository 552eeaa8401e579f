"""What a user meets before the first request: imports, missing packages, the files that are installed."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from importlib import import_module, resources
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
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
"""

OWNERS = {
    name: {owner.lower().replace("_", "-") for owner in owners} for name, owners in packages_distributions().items()
}
PYPROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
DECLARED = [
    (re.match(r"[\w-]+", text)[0], extra)
    for extra, listed in [("", PYPROJECT["dependencies"]), *PYPROJECT["optional-dependencies"].items()]
    if extra not in ("all", "test", "docs")
    for text in listed
]
AT = "PointBuffer(13.720948, 48.222307, 600)"
WHEN = "TemporalSpec.range('2017-06-01', '2017-07-01')"
EMBED = f"rs.get_embedding('clip_eurosat', spatial=rs.{AT}, temporal=rs.{WHEN}, backend='sample'"
EXPORT = f"rs.export_embeddings('clip_eurosat', [rs.{AT}], folder / 'new', temporal=rs.{WHEN}, backend='sample'"
MAIN = "__import__('rs_embed.cli.main').cli.main.main"
COMMAND = (
    "embed --model clip_eurosat --backend sample --point 13.72 48.22 --chip 1200 --start 2017-06-01 --end 2017-07-01 "
    "--output grid --out"
)
USES = {
    **dict.fromkeys(("tokenizers", "ftfy"), "rs.embed_text('clip_eurosat', 'river')"),
    **dict.fromkeys(("huggingface_hub", "httpx2"), f"rs.get_embedding('remoteclip', {EMBED.partition(', ')[2]})"),
    **dict.fromkeys(("pystac-client", "async-tiff", "isal", "aiohttp", "yarl", "requests"), "rs.StacProvider('cdse')"),
    **dict.fromkeys(("pyarrow", "filelock"), EXPORT + ")"),
    "typer": f"{MAIN}(['models', 'remoteclip'])",
    "rich": f"{MAIN}(['index', str(folder / 'ds')])",
    **dict.fromkeys(("fastapi", "uvicorn"), f"{MAIN}(['serve', 'nothere'])"),
    "xarray": EMBED + ", output=rs.OutputSpec.grid())",
    "h5netcdf": f"{MAIN}([*{COMMAND.split()}, str(folder / 'v.nc')])",
    "earthengine-api": f"rs.fetch_patch(rs.{AT}, rs.{WHEN}, backend='gee')",
    "zarr": EXPORT + ", grid=True)",
    "ray": EXPORT + ", engine='ray')",
    "faiss-cpu": "__import__('rs_embed.search.vectors').search.vectors._faiss()",
    "geopandas": "rs.open_dataset(folder / 'ds').to_geodataframe()",
}
"""Call that needs a package; all others are needed to embed a sample."""
OF_THE_NOTEBOOK = {"lonboard"}
"""Packages that only docs/notebooks imports."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vector_dataset import write_vectors

    root = tmp_path_factory.mktemp("packages")
    for name in ("huggingface_hub", "pystac_client", "tokenizers", "h5netcdf", "async_tiff", "rich.progress", "typer"):
        import_module(name)  # whole, before anything that they may use is blocked
    write_vectors(root / "ds", np.eye(3, 8, dtype=np.float32))
    return root


@pytest.mark.parametrize(("package", "extra"), DECLARED)
def test_a_missing_package_is_one_error_with_its_pip_line(package, extra, folder, monkeypatch, capsys):
    if package in OF_THE_NOTEBOOK:
        pytest.skip("the package itself does not import it")
    modules = [name for name, owners in OWNERS.items() if package.lower().replace("_", "-") in owners]
    assert modules, f"{package} is not installed"
    ours = {name for name in sys.modules if name.partition(".")[0] == "rs_embed"}
    for name in [*ours, *(n for n in sys.modules if n.partition(".")[0] in modules)]:
        monkeypatch.delitem(sys.modules, name)  # ours are imported anew, and then forgotten
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    try:
        with pytest.raises((Exception, SystemExit)) as caught:
            eval(USES.get(package, EMBED + ")"), {"rs": __import__("rs_embed"), "folder": folder})
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "rs_embed"]:
            del sys.modules[name]
    message = capsys.readouterr().err if caught.type is SystemExit else str(caught.value)
    kinds = {base.__name__ for base in caught.type.__mro__}
    assert kinds & {"ModelError", "ProviderError", "SystemExit"}, repr(caught.value)
    assert len(message.splitlines()) == 1
    name = PYPROJECT["name"]
    assert (f"pip install '{name}[{extra}]'" if extra else f"pip install {name}") in message
    assert any(name in message for name in modules)
    assert not (folder / "new").exists()


def test_the_command_line_says_it_too():
    code = BLOCKED + (
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
