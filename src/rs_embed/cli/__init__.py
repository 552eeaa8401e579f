"""The command `rs-embed`."""
