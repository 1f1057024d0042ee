"""A folder with a diffusers pipeline as a model that can be taught."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import SeqLoRAError
from .families import FAMILIES
from .pipelines import PipelineModel

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # not loaded


def load_pipeline(path: Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PipelineModel:
    """The pipeline in a folder that diffusers' `save_pretrained` wrote, frozen. Nothing is downloaded.

    device: the GPU if there is one. dtype: float32 or bfloat16; bfloat16 on a GPU that computes in it, else float32.
    Raises SeqLoRAError for a folder that holds no pipeline, one that cannot be taught, or an incomplete one.
    """
    try:
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        kind = str(index["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SeqLoRAError(
            f"There is no diffusers pipeline at {path}", "give a local folder with a model_index.json, or 'demo'"
        ) from error
    if kind not in FAMILIES:
        raise SeqLoRAError(f"{path} holds a {kind}, which cannot be taught", f"these can: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    missing = [part for part in family.needs if not any(index.get(part) or [])]
    if missing:
        raise SeqLoRAError(f"The pipeline at {path} has no {missing[0]}", f"give a complete {kind}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        dtype = torch.bfloat16 if fast else torch.float32
    return family(_read(path, index, dtype), device, dtype)


def _read(path: Path, index: Mapping[str, Any], dtype: torch.dtype) -> Any:
    try:
        import diffusers
        import transformers  # noqa: F401  without it diffusers has no pipelines
    except ImportError as error:
        raise SeqLoRAError(f"{error.name} is missing", "run: pip install diffusers transformers") from error
    options: dict[str, Any] = {part: None for part in UNUSED if part in index}
    if "requires_safety_checker" in index:
        options["requires_safety_checker"] = False
    version = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    options["dtype" if version >= (0, 41) else "torch_dtype"] = dtype
    weights = [file.name for file in path.glob("*/diffusion_pytorch_model*.safetensors")]
    variant = "fp16" if weights and all(".fp16" in name for name in weights) else None
    try:
        return diffusers.DiffusionPipeline.from_pretrained(path, local_files_only=True, variant=variant, **options)
    except (OSError, ValueError, RuntimeError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise SeqLoRAError(
            f"The pipeline at {path} cannot be loaded ({reason})", "check that the folder is complete"
        ) from error
