"""EuroSAT chips, retrieval scores and model figures, shared by `training` and `benchmarks`."""
