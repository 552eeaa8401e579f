"""The table of models under the name that the founding document gives it; see `cards`."""

from rs_embed.embedders.cards import CARDS, ModelCard, describe_model, find_card, list_models

__all__ = ["CARDS", "ModelCard", "describe_model", "find_card", "list_models"]
