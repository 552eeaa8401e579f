"""Sources of imagery. `rs_embed.providers.registry.resolve` turns a backend's name into a provider."""
