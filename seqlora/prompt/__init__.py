"""Prompts that name their concepts."""
