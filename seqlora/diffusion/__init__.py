"""Denoisers in k-diffusion's terms, noised batches, sampling."""
