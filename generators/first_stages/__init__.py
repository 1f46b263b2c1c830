"""First stages: images to few numbers or tokens and back, one family with a chosen bottleneck."""
