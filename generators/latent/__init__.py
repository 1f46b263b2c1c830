"""Latent diffusion: captions into the latents of a first stage, its adapters, and its decoder by consistency."""
