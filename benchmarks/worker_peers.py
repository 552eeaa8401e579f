"""Worker in the peers' environment (`make bench-peers`): reads case names from stdin and writes seconds as JSON lines.

It runs rs-embed 0.3.1, open_clip and transformers on the patches and weights that `bench_peers` wrote.
"""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch


def patch_rshf():
    """Make rshf 0.2.2 load: it reads `config.model_name`, which current versions of transformers lack."""
    import open_clip
    import rshf.remoteclip.model as wrapper

    def build(self, config=None, model_name="ViT-B-32"):
        torch.nn.Module.__init__(self)
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(model_name)
        self.tokenizer = open_clip.get_tokenizer(model_name)

    wrapper.RemoteCLIP.__init__ = build


def rs_embed_runs(weights, patches):
    patch_rshf()
    from rs_embed import OutputSpec, PointBuffer, TemporalSpec
    from rs_embed.embedders.onthefly_remoteclip import RemoteCLIPS2RGBEmbedder

    embedder = RemoteCLIPS2RGBEmbedder()
    places = [PointBuffer(lon=13.7, lat=48.2, buffer_m=2050)] * len(patches)

    def run(output):
        found = embedder.get_embeddings_batch_from_inputs(
            spatials=places,
            input_chws=patches,
            temporal=TemporalSpec.range("2022-06-01", "2022-09-01"),
            model_config={"model_id": str(weights)},
            output=output,
            device="cpu",
        )
        return np.stack([np.asarray(e.data) for e in found])

    return {"pooled": lambda: run(OutputSpec.pooled()), "grid": lambda: run(OutputSpec.grid())}


def grey(dn):
    return (np.clip(dn.astype(np.float32) / 10_000, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def open_clip_runs(weights, patches, batch):
    import open_clip
    from PIL import Image

    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=str(weights / "open_clip.pt"))
    model.eval()

    def run():
        out = []
        for i in range(0, len(patches), batch):
            pixels = torch.stack([preprocess(Image.fromarray(grey(dn))) for dn in patches[i : i + batch]])
            with torch.inference_mode():
                out.append(model.encode_image(pixels).numpy())
        return np.concatenate(out)

    return {"pooled": run}


def transformers_runs(patches, batch):
    """Return the runs of a transformers CLIP of the same shape, with its own random weights."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        patch_size=32,
        projection_dim=512,
    )
    model, processor = CLIPVisionModelWithProjection(config).eval(), CLIPImageProcessor()

    def run():
        out = []
        for i in range(0, len(patches), batch):
            pixels = processor(images=[grey(dn) for dn in patches[i : i + batch]], return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                out.append(model(pixel_values=pixels).image_embeds.numpy())
        return np.concatenate(out)

    return {"pooled": run}


def main():
    who, folder, weights, batch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    patches = list(np.load(folder / "patches.npy"))
    runs = {
        "rs-embed": lambda: rs_embed_runs(weights, patches),
        "open_clip": lambda: open_clip_runs(weights, patches, batch),
        "transformers": lambda: transformers_runs(patches, batch),
    }[who]()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        found = runs[line.strip()]()
        seconds = time.perf_counter() - started
        np.save(folder / f"{who}-{line.strip()}.npy", found)
        peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) // 1024
        print(json.dumps({"seconds": seconds, "peak_mib": peak}), flush=True)


if __name__ == "__main__":
    main()
