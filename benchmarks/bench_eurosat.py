"""Zero-shot, retrieval, neighbour and linear-probe figures of any checkpoint on EuroSAT.

    python -m benchmarks.bench_eurosat                                         # the bundled model
    python -m benchmarks.bench_eurosat --checkpoint MVRL/remote-clip-vit-base-patch32

With a checkpoint and no other option, DN 0…10000 (`remoteclip_s2rgb`) and 0…3000 (`_bright`) are measured, each with
GELU and QuickGELU. Each figure is given twice: for the chips unchanged (L1C, with haze) and with the haze subtracted,
which is close to the L2A imagery that the library reads.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluation.eurosat import DATA, load_captions, open_eurosat
from evaluation.measure import measure, measure_pooling, open_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="default: clip_eurosat_s2rgb, with --checkpoint remoteclip_s2rgb")
    parser.add_argument("--checkpoint", help="hub repo, folder or file")
    parser.add_argument("--dn-range", nargs=2, type=float, metavar=("LOW", "HIGH"))
    parser.add_argument("--activation", choices=("gelu", "quick_gelu"))
    parser.add_argument("--data", type=Path, default=DATA, help="eurosat_rgb.tar")
    options = parser.parse_args()
    model = options.model or ("remoteclip_s2rgb" if options.checkpoint else "clip_eurosat_s2rgb")
    ranges, activations = [tuple(options.dn_range)] if options.dn_range else [None], [options.activation]
    if options.checkpoint and not options.dn_range:
        ranges = [(0.0, 10_000.0), (0.0, 3000.0)]
    if options.checkpoint and not options.activation:
        activations = ["gelu", "quick_gelu"]
    chips = open_eurosat(options.data)
    wordings = load_captions()
    for dn_range in ranges:
        for activation in activations:
            opened = open_model(model, options.checkpoint, dn_range, activation)
            low, high = opened.images.card.dn_range
            print(f"\n{model} {options.checkpoint or ''} DN {low:g}…{high:g} {opened.images.activation}")
            for name, value in measure(opened, chips, wordings.held_out, wordings.names).items():
                print(f"   {name:<36}{value:.3f}")
            for pooling, row in measure_pooling(opened, chips).items():
                print(f"   {pooling:<12}" + "   ".join(f"{name} {value:.3f}" for name, value in row.items()))


if __name__ == "__main__":
    main()
