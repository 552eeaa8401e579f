"""CLIP in plain torch: network, pixels, tokens, checkpoints. Knows nothing of the earth."""
