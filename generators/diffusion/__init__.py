"""Diffusion: schedules, what a network predicts, samplers and guidance, one vocabulary for every model."""
