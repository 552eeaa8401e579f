"""The importable path of the table of models; see `cards`."""

from rs_embed.embedders.cards import CARDS, ModelCard, describe_model, find_card, list_models

__all__ = ["CARDS", "ModelCard", "describe_model", "find_card", "list_models"]
