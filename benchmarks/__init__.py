"""Measurements. Each prints what it computed in this run; none reads a result it did not compute."""
