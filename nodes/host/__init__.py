"""The one room that touches ComfyUI's private interfaces: folders, the user's MODEL, CLIP and VAE, memory, progress.

The rest of the pack sees the names below.
"""

from __future__ import annotations

from .adopt import adopted_lora, lora_names, lora_state
from .apply import apply_adapter
from .denoiser import Caption, HostDenoiser
from .folders import (
    embeddings_folder,
    hidden_remark,
    input_folder,
    input_folders,
    library_names,
    library_path,
    new_library_path,
    next_lora_path,
    preview_folder,
    register_folder,
)
from .gradients import without_inference_mode
from .identity import fingerprint, fingerprints
from .model import HostModel, has_accelerator, training_model
from .own_words import with_own_words
from .progress import Interrupted, add_routes, remark, run_with_progress, say, send
from .regions import Regions, check_model, encode_words, join_texts, lengthened

__all__ = [
    "Caption",
    "HostDenoiser",
    "HostModel",
    "Interrupted",
    "Regions",
    "add_routes",
    "adopted_lora",
    "apply_adapter",
    "check_model",
    "embeddings_folder",
    "encode_words",
    "fingerprint",
    "fingerprints",
    "has_accelerator",
    "hidden_remark",
    "join_texts",
    "lengthened",
    "library_names",
    "library_path",
    "lora_names",
    "lora_state",
    "new_library_path",
    "next_lora_path",
    "without_inference_mode",
    "preview_folder",
    "register_folder",
    "remark",
    "run_with_progress",
    "input_folder",
    "input_folders",
    "say",
    "send",
    "training_model",
    "with_own_words",
]
