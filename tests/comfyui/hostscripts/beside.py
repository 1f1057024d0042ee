"""Runs a composed adapter beside the weights, in the host's sampler, and compares with patched weights and the host's bypass.

Arguments: an empty folder, and as JSON the families of zoo.py and the formats of quantised weights to look at.
"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
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
import zoo
from comfy.ldm.modules.attention import attention_pytorch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from safetensors.torch import load_file, save_file
from seqlora_pack.nodes.host import apply
from seqlora_pack.nodes.host.apply import apply_adapter
from seqlora_pack.nodes.host.forward import run_beside
from seqlora_pack.nodes.host.regions import Attention, Regions, join_texts, lengthened
from seqlora_pack.seqlora.errors import SeqLoRAError
from seqlora_pack.seqlora.lora.compose import compose, owners
from seqlora_pack.seqlora.lora.formats import to_native
from seqlora_pack.seqlora.lora.layouts import TRANSFORMER, layout_from_native, native_to_diffusers
from seqlora_pack.seqlora.lora.targets import choose_layers, layer_shapes
from seqlora_pack.seqlora.lora.types import LoRAPair
from seqlora_pack.seqlora.prompt.regions import RegionPlan, Tokens, box_mask
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
    prompts = [encoded(models, text) for text in ("a photo of zobiku thing", "ugly")]
    return drawn(models, patcher, 8, 8, *prompts)


def drawn(models: Any, patcher: Any, height: int, width: int, positive: Any, negative: Any) -> Tensor:
    kind = patcher.model.latent_format
    frames = (1,) if kind.latent_dimensions == 3 else ()
    latent = torch.zeros(1, kind.latent_channels, *frames, height, width)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    return comfy.sample.sample(patcher, noise, 2, 3.0, "euler", "simple", positive, negative, latent, disable_pbar=True, seed=1)


def encoded(models: Any, text: str) -> Any:
    return models[1].encode_from_tokens_scheduled(models[1].tokenize(text))


def share(found: Tensor, expected: Tensor, bare: Tensor) -> float:
    """The error as a share of what the concepts change."""
    return float((found - expected).norm() / (expected - bare).norm())


def hooks_left(model: Any) -> int:
    return sum(len(part._forward_hooks) + ("forward" in part.__dict__) for part in model.modules())


def beside(patcher: Any, composed: dict[str, LoRAPair], strength: float = 1.0) -> Any:
    targets = list(apply._targets(patcher.model, composed))
    return run_beside(patcher, apply._by_module(targets, strength))


def compare(family: str) -> dict[str, Any]:
    models = zoo.build(family)
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
        "copies_left": sum(len(adapter._kept) for adapter in forward.get_all_wrappers("apply_model")),
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


def regional(family: str) -> dict[str, Any]:
    """Two concepts in two boxes and one that is everywhere, in a picture that is no square."""
    models = zoo.build(family)
    patcher, network = models[0], models[0].model.diffusion_model
    height, width = 8, 12
    concepts = [concept(patcher.model, seed, 0.3) for seed in (1, 2, 3)]
    strengths = (1.0, 0.5, 0.8)
    composed = compose(list(zip(concepts, strengths, strict=True)))
    places = [box_mask(0, 0, 0.5, 1), box_mask(0.5, 0.5, 0.5, 0.5)]
    texts = [[[encoded(models, text)[0][0][:, :words], {}]] for text, words in (("zobiku thing", 5), ("vosk toy", 7))]
    positive, lengths = join_texts(encoded(models, "a photo"), texts)
    negative = lengthened(encoded(models, "ugly"), sum(lengths))
    bare = drawn(models, patcher, height, width, positive, negative)

    # Concepts that no region names are everywhere: beside the weights and in them must be the same, whoever sees what.
    nowhere = RegionPlan(places, lengths, [(), (), ()])
    everywhere = apply_adapter(patcher, composed, 0.8, Regions(nowhere, owners(concepts)))
    patched = run_beside(apply_adapter(patcher, composed, 0.8), {}, Regions(nowhere, {}))
    expected = drawn(models, patched, height, width, positive, negative)
    error = share(drawn(models, everywhere, height, width, positive, negative), expected, bare)

    plan = RegionPlan(places, lengths, [(0,), (1,), ()])
    placed = apply_adapter(patcher, composed, 1.0, Regions(plan, owners(concepts)))
    seen = Seen(placed, concepts, strengths, places, lengths)
    found = drawn(models, placed, height, width, positive, negative)
    placed.remove_wrappers_with_key("apply_model", "test")
    return {
        "everywhere": error,
        "placed": max(seen.errors.values()),
        "layers": len(seen.errors),
        "taught": len(composed),
        "differs": share(found, expected, bare),
        "looked": seen.looked,
        "network": type(network).__name__,
        "bare_kept": torch.equal(bare, drawn(models, patcher, height, width, positive, negative)),
        "hooks_left": hooks_left(patcher.model),
        "other_text": bool(drawn(models, placed, height, width, positive, encoded(models, "ugly")).isfinite().all()),
    }


class Seen:
    """Holds what every layer gave against float64, by what its name says about its input: text, picture or both."""

    TEXT = re.compile(r"attn2\.to_[kv]$|txt_|context_block|\.add_[qkv]_proj|to_add_out|cross_attn\.[kv]$")
    BOTH = re.compile(r"single_blocks")

    def __init__(self, patcher: Any, concepts: Any, strengths: Any, places: list[Tensor], lengths: list[int]):
        self.concepts, self.strengths, self.places, self.lengths = concepts, strengths, places, lengths
        self.errors: dict[str, float] = {}
        self.looked = 0
        patcher.add_wrapper_with_key("apply_model", "test", self)  # inside the adapter's, so behind its hooks

    def __call__(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layers = {name: executor.class_obj.get_submodule(name) for name in self.concepts[0]}
        handles = [layer.register_forward_hook(partial(self.compare, name)) for name, layer in layers.items()]
        try:
            return executor(x, *args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def compare(self, name: str, layer: Any, args: Any, output: Tensor) -> None:
        x = args[0]
        hooks, layer._forward_hooks = layer._forward_hooks, {}
        bare = layer(x)
        layer._forward_hooks = hooks
        shares = self.shares(name, x.shape[-2])
        expected = 0
        for number, (concept, strength) in enumerate(zip(self.concepts, self.strengths, strict=True)):
            up, basis = (part.double() for part in concept[name])
            expected = expected + strength * shares[:, number, None] * (x.double() @ basis @ up.mT)
        error = float((output.double() - bare.double() - expected).norm() / (expected.norm() + 1e-30))
        self.errors[name] = max(error, self.errors.get(name, 0.0))

    def shares(self, name: str, tokens: int) -> Tensor:
        one, two, rest = self.lengths[1], self.lengths[2], self.lengths[0]
        text = torch.tensor([[0, 0, 1]] * rest + [[1, 0, 1]] * one + [[0, 1, 1]] * two)
        if self.TEXT.search(name):
            assert tokens == len(text), (name, tokens)
            return text.double()
        count = tokens - (len(text) if self.BOTH.search(name) else 0)
        height = {96: 8, 24: 4}[count]  # latents of 8 x 12, or patches of 2 x 2 (for a UNet its second level)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(count // height), indexing="ij")
        left = (columns < count // height // 2).flatten()
        lower_right = ~left & (rows >= height // 2).flatten()
        picture = torch.stack([left, lower_right, torch.ones_like(left)], 1)
        self.looked += 1
        return (torch.cat([text, picture]) if self.BOTH.search(name) else picture).double()


def attention() -> dict[str, float]:
    """Groups of tokens against one mask over all of them, in float64."""
    plan = RegionPlan([box_mask(0, 0, 0.5, 1), box_mask(0.25, 0, 0.5, 1)], [5, 3, 4], [])
    tokens = Tokens(plan, 12, {24: (1, 4, 6)}, joint=True)
    errors = {}
    for form, (queries, keys) in {"joint": (36, 36), "apart": (24, 12), "picture": (24, 24)}.items():
        groups = tokens.groups(queries, keys) or [(torch.arange(queries), torch.arange(keys))]
        mask = torch.zeros(queries, keys, dtype=torch.bool)
        for rows, columns in groups:
            mask[rows[:, None], columns] = True
        q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (queries, keys, keys))
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
        flat = [part.movedim(1, 2).flatten(2) for part in (q, k, v, expected)]
        attend = Attention(tokens, torch.device("cpu"), None)
        kept = attend(attention_pytorch, q, k, v, 3, skip_reshape=True, skip_output_reshape=True)
        plain = attend(attention_pytorch, *flat[:3], 3)
        errors[form] = max(float((kept - expected).abs().max()), float((plain - flat[3]).abs().max()))
    return errors


if __name__ == "__main__":
    folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    tiny.use_folder(folder)
    with torch.inference_mode():
        figures = {f"beside {family}": compare(family) for family in asked["beside"]}
        figures |= {f"regions {family}": regional(family) for family in asked["regions"]}
        refusal = ""
        try:
            run_beside(zoo.build(asked["refused"])[0], {}, Regions(RegionPlan([], [], []), {}))
        except SeqLoRAError as error:
            refusal = str(error)
        figures |= {form: quantised(folder, form) for form in asked["formats"]}
        boot.report(**figures, attention=attention(), refusal=refusal)
