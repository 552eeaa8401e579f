"""Earth Engine: composites are computed by the service and read on our pixel grid."""
