"""Training of the CLIP that ships with the package: `make train`."""
