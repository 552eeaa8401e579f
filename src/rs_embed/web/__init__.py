"""A dataset over HTTP, on loopback unless asked otherwise."""
