"""Speed figures of README, docs/speed.md and CHANGELOG, from RESULTS.md and RESULTS-peers.md: all are of one run.

`python -m benchmarks.quote` writes them between the markers. The benchmarks call it at their end, and a test compares.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rs_embed.embedders.cards import LOWER_PRECISIONS

ROOT = Path(__file__).parents[1]
_BEGIN, _END = "<!-- figures: written by python -m benchmarks.quote -->", "<!-- end of figures -->"

SPEED = """\
Measured on {machine}, with both sides alternating in one run
(`make bench`, `benchmarks/RESULTS.md`):

| case (baseline) | times as fast |
|---|---|
| one cold embedding, ViT-B/32 (against open_clip; {peak} MiB at its peak against {peak_open_clip}) | **{cold:.1f}** |
| 48 places, pooled (against open_clip patch by patch) | **{pooled:.1f}** |
| 48 places, token grids (against the same) | **{grid:.1f}** |
| raw DN to the network's input (against open_clip's preprocessing) | **{pixels:.1f}** |
| median of 8 scenes of 410 x 410 px (against `numpy.nanmedian`) | **{median:.0f}**, with masks **{masked:.1f}** |
| COGs over HTTP, 6 dates: one patch of 410 px (against odc-stac) | **{cogs_1:.1f}** |
| the same, 24 patches on a tile (against odc-stac, stackstac) | **{cogs_24:.1f}**, **{cogs_24_stackstac:.1f}** |
| the same, 240 patches (against odc-stac) | **{cogs_240:.1f}** |

Against the peers on the same 64 patches of 410 px, batches of 32 (`make bench-peers`,
`benchmarks/RESULTS-peers.md`):

| images/s (times rs-embed 0.3.1) | pooled | token grids | peak MiB |
|---|---|---|---|
| rs-embed 0.3.1 | {peer[pooled]} | {peer[grid]} | {peer[peak]} |
| open_clip, batched | {open_clip} | | {open_clip_peak} |
| transformers CLIP, batched | {transformers} | | {transformers_peak} |
| ours | {fp32[pooled]} | {fp32[grid]} | {fp32[peak]} |
| ours, `precision="bf16"` | {bf16[pooled]} | {bf16[grid]} | {bf16[peak]} |
| ours, `precision="int8"` | {int8[pooled]} | {int8[grid]} | {int8[peak]} |

One cold embedding is {cold_peer} times as fast as rs-embed's. The float32 network alone runs at {share} % of the
machine's fastest matrix product, and is busy for {busy} % of a run on local files
([timeline](images/timeline.png)). bf16 and int8 are never the default: on the bundled
model their cosine with float32 is at least {bf16_cosine} and {int8_cosine}, and {bf16_words} % and {int8_words} % of
the ten best hits for words are the same. Planning and writing cost {row_ms} ms per place (measured up to 100,000
places). A million vectors are searched in {search_ms:.0f} ms. `make bench-gpu` measures CUDA."""

README = """\
On two cores without a GPU: {fp32[pooled_times]} times `rs-embed` 0.3.1 on the same patches, {int8[pooled_times]} times
in int8; imagery from a STAC catalog {cogs_1:.1f} to {cogs_240:.1f} times as fast as odc-stac.
[All figures, their commands and machines](docs/speed.md)."""

CHANGELOG = """\
* Speed on a CPU: packed products, `precision="bf16"` and `"int8"`; {fp32[pooled_times]} times rs-embed 0.3.1 pooled,
  {fp32[grid_times]} times on token grids, {int8[pooled_times]} times pooled in int8.
* Speed: COGs over HTTP {cogs_1:.1f} to {cogs_240:.1f} times odc-stac (one patch, 240 patches); {row_ms} ms a row for
  planning and writing; a million vectors searched in {search_ms:.0f} ms."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures in the texts of the two result files."""

    ours: str
    peers: str

    def find(self, pattern: str) -> str:
        """Return the first group of a pattern, from either file."""
        found = re.search(pattern, f"{self.ours}\n{self.peers}", re.MULTILINE)
        if found is None:
            raise LookupError(f"the results do not hold {pattern!r}: make bench, make bench-peers")
        return found[1]

    def times(self, name: str) -> float:
        """Return the ratio of a row in RESULTS.md, found by the start of its name."""
        return float(self.find(rf"^\| {re.escape(name)}.*\*\*([\d.]+)\*\* \|$"))

    def peer(self, what: str, who: str, column: int = 3) -> str:
        """Return a cell of RESULTS-peers.md: column 3 is images/s, 4 times rs-embed, 5 peak MiB."""
        row = self.find(rf"^(\| {re.escape(what)} \| {re.escape(who)}\b.*\|)$")
        cell = row.split("|")[column].strip().strip("*")
        return f"{int(cell):,}" if cell.isdigit() else cell

    def ours_in(self, precision: str) -> dict[str, str]:
        """Return our cells in one precision."""
        found = {"peak": self.peer("pooled, batch 32", f"ours {precision}", 5)}
        for what in ("pooled", "grid"):
            rate, times = (self.peer(f"{what}, batch 32", f"ours {precision}", column) for column in (3, 4))
            found |= {what: f"{rate} (**{times}**)", f"{what}_times": times}
        return found

    def values(self) -> dict[str, object]:
        """Return all quoted figures by name."""
        batch, cog = "pooled, batch 32", " random 410 px patch(es), 6 dates, RGB: "
        return {
            "machine": self.find(r"^[\d-]+, (\d.+);$"),
            "peak": self.find(r"peak memory of the last ([\d,]+) MiB"),
            "peak_open_clip": self.find(r"peak memory of the last [\d,]+ MiB, of open_clip ([\d,]+)"),
            "cold": self.times("one cold embedding"),
            "pooled": self.times("48 places, pooled"),
            "grid": self.times("48 places, grid"),
            "pixels": self.times("64 patches"),
            "median": self.times("median of 8 scenes, uint16, all"),
            "masked": self.times("median of 8 scenes, uint16, 30"),
            "cogs_1": self.times(f"1{cog}odc"),
            "cogs_24": self.times(f"24{cog}odc"),
            "cogs_24_stackstac": self.times(f"24{cog}stackstac"),
            "cogs_240": self.times(f"240{cog}odc"),
            "peer": {
                "pooled": self.peer(batch, "rs-embed"),
                "grid": self.peer("grid, batch 32", "rs-embed"),
                "peak": self.peer(batch, "rs-embed", 5),
            },
            "open_clip": self.peer(batch, "open_clip"),
            "open_clip_peak": self.peer(batch, "open_clip", 5),
            "transformers": self.peer(batch, "transformers"),
            "transformers_peak": self.peer(batch, "transformers", 5),
            **{precision: self.ours_in(precision) for precision in ("fp32", "bf16", "int8")},
            "cold_peer": self.find(r"one cold embedding: .*\*\*([\d.]+)\*\* times as fast"),
            "share": self.find(r"batch 32, images/s: .*float32 at (\d+)%"),
            "busy": 100 - int(self.find(r"the busiest \(network\) idles (\d+)%")),
            **{f"{p}_cosine": measured.cosine for p, measured in LOWER_PRECISIONS.items()},
            **{f"{p}_words": measured.words_pct for p, measured in LOWER_PRECISIONS.items()},
            "row_ms": self.find(r"^\* 100,000 rows.* ([\d.]+) ms a row"),
            "search_ms": float(self.find(r"1,000,000 clustered vectors of 512: ([\d.]+) ms")),
        }


def quoted(text: str, figures: str) -> str:
    """Return a text with the figures between its markers."""
    before, _, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise LookupError(f"there is no {_BEGIN!r} … {_END!r}")
    return f"{before}{_BEGIN}\n\n{figures}\n\n{_END}{after}"


def pages(root: Path = ROOT) -> dict[Path, str]:
    """Return the pages that quote figures, with the current ones."""
    ours, peers = (root / "benchmarks" / name for name in ("RESULTS.md", "RESULTS-peers.md"))
    values = Figures(ours.read_text(encoding="utf-8"), peers.read_text(encoding="utf-8")).values()
    texts = {root / "README.md": README, root / "docs" / "speed.md": SPEED, root / "CHANGELOG.md": CHANGELOG}
    return {p: quoted(p.read_text(encoding="utf-8"), text.format_map(values)) for p, text in texts.items()}


def main() -> None:
    """Write the current figures to the pages."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
