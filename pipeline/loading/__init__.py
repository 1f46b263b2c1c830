"""Training data out of blended shards: order, images, captions, as pure functions of a place."""
