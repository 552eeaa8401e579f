"""STAC catalogs: items are searched, and their COGs are read block by block."""
