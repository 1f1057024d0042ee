"""Files: whole or absent, bounded, checked before they are believed. Imports nothing of the pack but errors."""
