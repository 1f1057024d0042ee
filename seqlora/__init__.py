"""SeqLoRA: teach an image model concepts one after another and use any of them together.

    from seqlora import Library, Settings, TrainingRequest, compose, export_lora, load_model, read_folder, train

docs/api.md goes through them.
"""

from .api import compose, export_lora, load_model
from .errors import SeqLoRAError
from .io.pictures import read_folder
from .library.store import Library
from .settings import Settings
from .training.request import TrainingRequest
from .training.result import TrainResult
from .training.train import train

__version__ = "0.1.0"
__all__ = [
    "Library",
    "SeqLoRAError",
    "Settings",
    "TrainResult",
    "TrainingRequest",
    "compose",
    "export_lora",
    "load_model",
    "read_folder",
    "train",
]
