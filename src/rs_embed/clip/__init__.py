"""CLIP in plain torch: network, pixels, tokens, checkpoints. Nothing here depends on Earth observation."""
