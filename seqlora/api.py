"""The public functions: what `from seqlora import ...` gives, beside Library, TrainingRequest and Settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from .diffusion.model import SamplingModel
from .library.export import export_composed
from .library.store import Library
from .lora.compose import parse_selection
from .lora.types import LoRAPair


def load_model(path: Path | str, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SamplingModel:
    """A model to train on and to draw with.

    Args:
        path: a folder with a diffusers pipeline (SD 1.5, SD 2, SDXL, SD3, Flux), or "demo" for the model that ships.
        device: the GPU if there is one. Not for the demo model, which runs on the CPU.
        dtype: float32 or bfloat16; bfloat16 on a GPU that computes in it, else float32.

    Raises:
        SeqLoRAError: there is no pipeline, it cannot be taught, it is incomplete, or diffusers is missing.

    Example:
        >>> model = load_model("demo")
    """
    if str(path) == "demo":
        from .demo.demo_model import DemoModel

        return DemoModel()
    from .backends.load import load_pipeline

    return load_pipeline(Path(path), device, dtype)


def compose(library: Library, selection: str | Mapping[str, float] = "*", strength: float = 1.0) -> dict[str, LoRAPair]:
    """The sum of any concepts of a library as one adapter.

    Args:
        library: where the concepts are; only the selected ones' files are read.
        selection: as text (`rex: 0.8`, a line each, `*` for all), or name -> strength.
        strength: multiplies all of them.

    Returns:
        Layer name -> pair with `up` (m, R) and `basis` (n, R), R the sum of the concepts' ranks: dW = up @ basis.T. Exact.

    Raises:
        SeqLoRAError: a name that the library does not have, a file that is damaged.

    Example:
        >>> with model.using(compose(library, "rex: 0.8")):
        ...     ...
    """
    chosen = parse_selection(selection, library.names) if isinstance(selection, str) else selection
    return library.compose(chosen, strength)


def export_lora(
    library: Library,
    path: Path | str,
    selection: str | Mapping[str, float] = "*",
    format: str = "comfyui",
    dtype: str = "fp16",
) -> Path:
    """Writes the sum of any concepts as one ordinary LoRA file.

    Args:
        library: where the concepts are.
        path: the file, ending in .safetensors; it is replaced as a whole or not at all.
        selection: as for `compose`.
        format: "comfyui", "kohya" or "diffusers": whose names the layers get. docs/compatibility.md says who reads what.
        dtype: "fp16" or "fp32"; fp32 is exact.

    Returns:
        The path.

    Raises:
        SeqLoRAError: nothing is selected, the format has no names for this model, or fp16 cannot hold a value.

    Example:
        >>> export_lora(library, "rex.safetensors", "rex", "kohya")
    """
    chosen = parse_selection(selection, library.names) if isinstance(selection, str) else selection
    return export_composed(library, chosen, Path(path), format, dtype)
