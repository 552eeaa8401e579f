"""Finding places by words and by example."""
