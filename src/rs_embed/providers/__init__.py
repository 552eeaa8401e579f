"""Where imagery comes from. `rs_embed.providers.catalog.resolve` turns a backend's name into a provider."""
