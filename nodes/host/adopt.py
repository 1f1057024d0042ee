"""A LoRA of the host's folders as a teacher: on clones of the user's MODEL and CLIP, as its own loader puts it there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...seqlora.errors import SeqLoRAError
from ...seqlora.lora.layouts import PREFIX
from ...seqlora.lora.types import LoRAPair
from ...seqlora.training.adopt import Adoption
from .model import HostModel, training_model

LORAS = "loras"
MOST = 64  # directions of a layer's change that the start is made from


def lora_names() -> list[str]:
    """As the host's own loaders list them."""
    return folder_paths.get_filename_list(LORAS)


def lora_state(name: str) -> str:
    """Another one for another file of this name; nothing of what it holds is read."""
    path = folder_paths.get_full_path(LORAS, name)
    about = Path(path).stat() if path else None
    return f"{about.st_mtime_ns} {about.st_size}" if about else "none"


def adopted_lora(model: Any, clip: Any, vae: Any, name: str, fast: bool) -> Adoption:
    """Any LoRA that the host loads, of whatever kind. Raises SeqLoRAError for one that is damaged or changes nothing here."""
    path = folder_paths.get_full_path(LORAS, name)
    if path is None:
        raise SeqLoRAError(f"There is no LoRA '{name}' in models/loras", "choose one from the list")
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    try:
        tensors = comfy.utils.load_torch_file(path, safe_load=True)
        patched, patched_clip = comfy.sd.load_lora_for_models(model, clip, tensors, 1.0, 1.0)
    except Exception as error:  # whatever safetensors, pickle and the host make of a file that is none
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SeqLoRAError(f"{name} cannot be read ({reason})", "download it again") from error
    added = {key: found[len(model.patches.get(key, ())) :] for key, found in patched.patches.items()}
    added = {key: found for key, found in added.items() if found}
    if not added and len(patched_clip.patcher.patches) == len(clip.patcher.patches):
        raise SeqLoRAError(f"{name} changes nothing of this model", "choose a LoRA that was made for it")

    @contextmanager
    def teacher() -> Iterator[HostModel]:
        try:
            with training_model(patched, patched_clip, vae, False) as taught:
                yield taught
        finally:  # the user's model shares its weights
            with torch.inference_mode():
                comfy.model_management.unload_model_and_clones(patched, unload_additional_models=False)

    return Adoption(name, digest, lambda: changes(model, added), teacher, fast)


@torch.no_grad()
def changes(model: Any, added: dict[str, Any]) -> dict[str, LoRAPair]:
    """What these patches do to the weights of linear layers, up to `MOST` directions of each; by the layers' names."""
    found = {}
    for key, patches in added.items():
        weight = _bare(model, key) if key.endswith(".weight") and key.startswith(PREFIX) else torch.zeros(())
        if weight.ndim == 2:
            change = comfy.lora.calculate_weight(patches, weight.clone(), key) - weight
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                left, sizes, right = torch.svd_lowrank(change, min(MOST, *change.shape))
            found[key.removesuffix(".weight")] = LoRAPair((left * sizes).cpu(), right.cpu())
    return found


def _bare(model: Any, key: str) -> Tensor:
    """A weight as it was before any patch, fp32; quantised ones unpacked."""
    backup = model.backup.get(key)
    weight = backup.weight if backup else comfy.utils.get_attr(model.model, key)
    part = weight.detach()
    part = part.dequantize() if hasattr(part, "dequantize") and type(part) is not Tensor else part
    return part.float().clone()
