"""Provider of the files of this machine: products, STAC items, time series and rasters that name their bands."""
