"""What is trained on the shards: DALL-E 1, 2 and 3 families, sampling, editing, evaluation."""


def load(folder: str, device: str = "cpu") -> object:
    """A trained model by its folder; see generators.checkpoint.load."""
    from generators import checkpoint

    return checkpoint.load(folder, device)
