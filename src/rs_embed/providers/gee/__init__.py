"""Earth Engine: composites are made on the service and read back on our pixel grid."""
