"""Guidance of diffusion by what looks at noised images: classifiers, noised CLIP, and reference images."""
