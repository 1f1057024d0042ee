"""What a low-rank adapter is, where it goes, how it is named. Knows of no training."""
