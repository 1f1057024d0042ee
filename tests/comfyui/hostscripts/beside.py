"""Runs a composed adapter beside the weights, in the host's sampler, and compares with patched weights and the host's bypass.

Arguments: an empty folder, families of tiny.py, "--" and formats of quantised weights.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import boot
import checkpoints
import comfy.lora
import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.utils
import tiny
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from safetensors.torch import load_file, save_file
from seqlora_pack.nodes.host import apply
from seqlora_pack.nodes.host.apply import apply_adapter
from seqlora_pack.nodes.host.forward import run_beside
from seqlora_pack.seqlora.lora.compose import compose
from seqlora_pack.seqlora.lora.formats import to_native
from seqlora_pack.seqlora.lora.layouts import TRANSFORMER, layout_from_native, native_to_diffusers
from seqlora_pack.seqlora.lora.targets import choose_layers, layer_shapes
from seqlora_pack.seqlora.lora.types import LoRAPair
from torch import Tensor


def concept(model: Any, seed: int, size: float) -> dict[str, LoRAPair]:
    """A random concept on all layers that are taught: it changes a layer by `size` of what its weight does."""
    generator, pairs = torch.Generator().manual_seed(seed), {}
    for name, (m, n) in layer_shapes(choose_layers(model.diffusion_model, "attention and mlp")).items():
        basis = torch.linalg.qr(torch.randn(n, 4, generator=generator))[0]
        pairs[name] = LoRAPair(torch.randn(m, 4, generator=generator) * size * (n / m) ** 0.5 / 2, basis)
    return pairs


def sampled(models: Any, patcher: Any) -> Tensor:
    """Two steps of the host's own sampler, with guidance."""
    model = patcher.model
    latent = torch.zeros(1, model.latent_format.latent_channels, 8, 8)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    prompts = [tiny_conditioning(models, text) for text in ("a photo of zobiku thing", "ugly")]
    return comfy.sample.sample(patcher, noise, 2, 3.0, "euler", "simple", *prompts, latent, disable_pbar=True, seed=1)


def tiny_conditioning(models: Any, text: str) -> Any:
    return models[1].encode_from_tokens_scheduled(models[1].tokenize(text))


def share(found: Tensor, expected: Tensor, bare: Tensor) -> float:
    """The error as a share of what the concepts change."""
    return float((found - expected).norm() / (expected - bare).norm())


def hooks_left(model: Any) -> int:
    return sum(len(part._forward_hooks) + ("forward" in part.__dict__) for part in model.modules())


def beside(patcher: Any, composed: dict[str, LoRAPair], strength: float = 1.0) -> Any:
    targets = list(apply._targets(patcher.model, composed))
    return run_beside(patcher, apply._by_module(targets, strength))


def compare(family: str, folder: Path) -> dict[str, Any]:
    models = tiny.load(family, folder)
    patcher = models[0]
    one, two = (concept(patcher.model, seed, 0.3) for seed in (1, 2))
    composed = compose([(one, 1.0), (two, 0.5)])
    bare = sampled(models, patcher)
    patched = sampled(models, apply_adapter(patcher, composed, 0.8))
    forward = beside(patcher, composed, 0.8)
    found = sampled(models, forward)
    chained = sampled(models, beside(beside(patcher, one, 0.8), two, 0.4))
    return {
        "changed": float((patched - bare).norm() / bare.norm()),
        "error": share(found, patched, bare),
        "chained": share(chained, patched, bare),
        "apart": apart(models, composed, bare),
        "upstream": share(sampled(models, beside(apply_adapter(patcher, one, 0.8), two, 0.4)), patched, bare),
        "hooks_left": hooks_left(patcher.model),
        "bare_kept": torch.equal(bare, sampled(models, patcher)),
        "copies_left": sum(len(adapter._copies) for adapter in forward.get_all_wrappers("apply_model")),
        "untouched": patcher.wrappers == {} and not patcher.patches,
        "plain_is_patched": bool(apply_adapter(patcher, composed, 1.0).patches),
    }


def apart(models: Any, composed: dict[str, LoRAPair], bare: Tensor) -> float | None:
    """The same under the names of a headless library, which keeps q, k and v apart. None: the family has no such names."""
    patcher = models[0]
    layout = layout_from_native(patcher.model.state_dict())
    if layout["family"] not in ("flux", "sd3"):
        return None
    named = {TRANSFORMER + name: pair for name, pair in native_to_diffusers(composed, layout).items()}
    return share(sampled(models, beside(patcher, named)), sampled(models, apply_adapter(patcher, named, 1.0)), bare)


def make_quantised(path: Path, plain: Path, form: str) -> Path:
    """The tiny Flux with its blocks' weights in one of the host's formats."""
    weights, made = load_file(plain), {}
    for key, weight in weights.items():
        if not (key.endswith(".weight") and "_blocks." in key and weight.ndim == 2) or "norm" in key:
            made[key] = weight.to(torch.bfloat16)
        elif form == "fp8_cast":
            made[key] = weight.to(torch.float8_e4m3fn)
        else:
            layout = QUANT_ALGOS[form]["comfy_tensor_layout"]
            made |= QuantizedTensor.from_float(weight, layout).state_dict(key)
            said = torch.tensor(list(b'{"format": "%s"}' % form.encode()), dtype=torch.uint8)
            made[key.removesuffix("weight") + "comfy_quant"] = said
    save_file({key: value.contiguous() for key, value in made.items()}, path)
    return path


def quantised(folder: Path, form: str) -> dict[str, Any]:
    plain = folder / "flux.safetensors"
    if not plain.exists():
        checkpoints.make_flux(plain)
    path = make_quantised(folder / f"{form}.safetensors", plain, form)
    options = {"dtype": torch.float8_e4m3fn} if form == "fp8_cast" else {}
    patcher = comfy.sd.load_diffusion_model(str(path), model_options=options)
    models = (patcher, tiny.NoiseClip(patcher.model), None)
    composed = concept(patcher.model, 1, 0.3)
    bare = sampled(models, patcher)
    applied = apply_adapter(patcher, composed, 0.1)
    found, left = sampled(models, applied), hooks_left(patcher.model)
    bypassed, _ = comfy.sd.load_bypass_lora_for_models(patcher, None, to_native(composed), 0.1, 0.0)
    expected = sampled(models, bypassed)
    rounded, _ = comfy.sd.load_lora_for_models(patcher, None, to_native(composed), 0.1, 0.0)
    return {
        "beside": not applied.patches and "seqlora" in applied.wrappers["apply_model"],
        "error": share(found, expected, bare),
        "patched_error": share(sampled(models, rounded), expected, bare),
        "bare_kept": torch.equal(bare, sampled(models, patcher)),
        "hooks_left": left,
    }


if __name__ == "__main__":
    folder, (families, formats) = Path(sys.argv[1]), [" ".join(sys.argv[2:]).split(" -- ")[i].split() for i in (0, 1)]
    tiny.use_folder(folder)
    with torch.inference_mode():
        figures = {family: compare(family, folder) for family in families}
        boot.report(**figures, **{form: quantised(folder, form) for form in formats})
