"""A text-to-image model small enough to ship, so that teaching and composing can be tried with no downloads and no GPU."""
