"""DALL-E 1: one transformer over the tokens of a text and of an image."""
