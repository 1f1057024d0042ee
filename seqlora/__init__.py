"""SeqLoRA: teach an image model concepts one after another and use any of them together."""

__version__ = "0.1.0"
