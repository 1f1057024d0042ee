"""Hosts of the core other than ComfyUI."""
