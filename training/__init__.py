"""Training and evaluation of the bundled CLIP: `make train`."""
