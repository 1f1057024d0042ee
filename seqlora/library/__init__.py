"""Concepts on disk."""
