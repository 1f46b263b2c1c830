"""The consistency decoder: a diffusion model from latents to pixels, distilled until two steps are enough."""
