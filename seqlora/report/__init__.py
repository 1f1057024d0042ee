"""What the concepts of a library do to each other, as figures and as one picture."""
