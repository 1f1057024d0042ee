"""What a LoRA file's header says to programs that list LoRAs: modelspec.* and kohya's ss_*."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# By the width of a UNet's text: modelspec's name and kohya's.
UNETS = {
    768: ("stable-diffusion-v1", "sd_v1"),
    1024: ("stable-diffusion-v2", "sd_v2"),
    2048: ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
}
TRANSFORMERS = {"sd3": ("stable-diffusion-3", "sd3"), "flux": ("flux-1-dev", "flux1")}


def architecture(family: str, layers: Mapping[str, Sequence[int]]) -> tuple[str, str]:
    """modelspec's and kohya's name of a base model, from its layout's family and its layers' [m, n]."""
    if family == "unet":
        widths = [shape[1] for name, shape in layers.items() if name.endswith("attn2.to_k")]
        return UNETS.get(widths[0] if widths else 0, ("unet", "unet"))
    return TRANSFORMERS.get(family, (family, family))


def header(names: tuple[str, str], title: str, subjects: Sequence[str], rank: int, date: str) -> dict[str, str]:
    """The header of a concept file or an export. `names` as `architecture` gives them, `subjects` what to write in prompts."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{names[0]}/lora",
        "modelspec.title": title,
        "modelspec.date": date,
        "modelspec.trigger_phrase": ", ".join(subjects),
        "modelspec.implementation": "seqlora",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_base_model_version": names[1],
        "ss_output_name": title,
    }
