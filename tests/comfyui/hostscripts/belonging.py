"""What the pack makes of parts that nodes of the host changed upstream: which part of a request differs, what is refused, what
is remarked on, and what the text encoder is given of words with parentheses. Argument: an empty folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boot
import comfy.hooks
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.text_encoders.flux
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.wan
import tiny
import torch
from checkpoints import SDXL
from comfy.quant_ops import QuantizedTensor
from comfy.weight_adapter import LoRAAdapter
from comfy_api.latest._io import HiddenHolder
from comfy_extras.nodes_cond import T5TokenizerOptions
from comfy_extras.nodes_hooks import SetClipHooks
from comfy_extras.nodes_model_advanced import ModelComputeDtype, ModelSamplingFlux, RescaleCFG
from comfy_extras.nodes_model_merging import ModelMergeSimple
from safetensors.torch import load_file
from seqlora_pack.nodes import host
from seqlora_pack.nodes.apply import ApplyComposed
from seqlora_pack.nodes.host.belonging import other_kind, pieces_of
from seqlora_pack.nodes.host.demo_model import load_demo_model
from seqlora_pack.nodes.host.identity import fingerprint, parts_of
from seqlora_pack.nodes.library import LibraryHandle
from seqlora_pack.nodes.server.previews import default_prompt
from seqlora_pack.seqlora.diffusion.fingerprint import weights_hash
from seqlora_pack.seqlora.errors import SeqLoRAError
from seqlora_pack.seqlora.library.manifest import Record
from seqlora_pack.seqlora.prompt.grammar import read_prompt
from seqlora_pack.seqlora.training.request import TrainingRequest
from torch import Tensor

from nodes import CLIPSetLastLayer

ApplyComposed.hidden = HiddenHolder.from_dict({})  # the host sets it for a node that it runs
folder = Path(sys.argv[1])
tiny.use_folder(folder)
LAYER = "diffusion_model.double_blocks.0.img_attn.qkv.weight"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def adapted(patcher: Any, seed: int = 0, alpha: float = 2.0, strength: float = 1.0, rows: Any = None) -> Any:
    """The model with a LoRA on it, as loader nodes put one there."""
    clone = patcher.clone()
    rank = (noise(384 if rows is None else rows[2], 2, seed=seed), noise(2, 128, seed=seed + 1), alpha, None, None, None)
    assert clone.add_patches({LAYER if rows is None else (LAYER, rows): LoRAAdapter(set(), rank)}, strength)
    return clone


def finetuned(factor: float) -> Any:
    other = tiny.load("flux", folder)[0]
    for weight in other.model.diffusion_model.parameters():
        weight.mul_(factor)
    return other


def merged(factor: float, ratio: float = 0.5) -> Any:
    return ModelMergeSimple().merge(models[0], finetuned(factor), ratio)[0]


def one_tensor(part: Any, places: Any) -> dict[str, str]:
    """The parts with one tensor of this part changed in some places, and then as it was."""
    weights = [value for value in part.state_dict().values() if value.is_floating_point() and value.numel() > 1]
    weight = max(weights, key=Tensor.numel)
    before = weight.clone()
    weight.flatten()[places] += 1
    found = parts_of(*models)
    weight.copy_(before)
    return found


def hooked(clip: Any) -> Any:
    return SetClipHooks().apply_hooks(clip, False, True, comfy.hooks.create_hook_lora({}, 1.0, 1.0))[0]


def on_text(clip: Any, strength: float) -> Any:
    clone = clip.clone()
    name, weight = next((name, value) for name, value in clip.cond_stage_model.state_dict().items() if value.ndim == 2)
    assert clone.add_patches({name: ("diff", (torch.ones_like(weight),))}, strength)
    return clone


def differing(model: Any = None, clip: Any = None, vae: Any = None) -> list[str]:
    found = parts_of(model or models[0], clip or models[1], vae or models[2])
    return [name for name, value in parts.items() if found[name] != value]


def changes() -> dict[str, list[str]]:
    model, clip, vae = models
    told = {
        "the same model loaded again": differing(tiny.load("flux", folder)[0]),
        "RescaleCFG, which a training passes by": differing(RescaleCFG().patch(model, 0.7)[0]),
        "a fine-tune": differing(finetuned(1.01)),
        "a merge": differing(merged(1.01)),
        "another compute dtype": differing(ModelComputeDtype().patch(model, "bf16")[0]),
        "a LoRA": differing(adapted(model)),
        "another shift": differing(ModelSamplingFlux().patch(model, 2.0, 0.5, 512, 512)[0]),
        "another layer of the text encoder": differing(clip=CLIPSetLastLayer().set_last_layer(clip, -2)[0]),
        "other options of a tokenizer": differing(clip=T5TokenizerOptions.execute(clip, 1, 3).result[0]),
        "a LoRA on the text encoder": differing(clip=on_text(clip, 1.0)),
        "the same text encoder loaded again": differing(clip=load_demo_model()[1]),
        "another VAE": differing(vae=tiny.PatchVAE(model.model)),
    }
    for what, part in (("VAE", vae.first_stage_model), ("text encoder", clip.cond_stage_model), ("model", model.model)):
        found = one_tensor(part, slice(None))
        told[f"one tensor of the {what}"] = [name for name, value in parts.items() if found[name] != value]
    return told


def told_apart() -> dict[str, bool]:
    """Whether two things that could be taken for each other are two."""
    model = models[0]
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "two merges": (lambda: merged(1.01), lambda: merged(1.02)),
        "two ratios of a merge": (lambda: merged(1.01, 0.5), lambda: merged(1.01, 0.25)),
        "two LoRAs of one name": (lambda: adapted(model, 0), lambda: adapted(model, 5)),
        "two strengths of a LoRA": (lambda: adapted(model), lambda: adapted(model, strength=0.5)),
        "two alphas of a LoRA": (lambda: adapted(model), lambda: adapted(model, alpha=1.0)),
        "a LoRA on other rows": (
            lambda: adapted(model, rows=(0, 0, 128)),
            lambda: adapted(model, rows=(0, 128, 128)),
        ),
    }
    return {
        what: parts_of(one(), *models[1:])["model"] != parts_of(other(), *models[1:])["model"]
        and parts_of(one(), *models[1:]) == parts_of(one(), *models[1:])
        and fingerprint(one()) != fingerprint(other())
        for what, (one, other) in pairs.items()
    }


def refused(model: Any, clip: Any) -> str:
    try:
        with host.training_model(model, clip, models[2], False):
            return ""
    except SeqLoRAError as error:
        return str(error)


def refusals() -> dict[str, str]:
    library = tiny.new_library(folder / "seqlora", "lib")
    quick = tiny.settings_for("flux", steps=1, basis_init="random", interference_weight=0.0)
    whole = tiny.load("flux", folder)
    taught = tiny.train(whole, library, quick).library
    lora = load_file(taught.path / taught.find("thing").file)
    bypassed = comfy.sd.load_bypass_lora_for_models(models[0], None, lora, 1.0, 0.0)[0]
    eighth = comfy.sd.load_diffusion_model(str(folder / "flux.safetensors"), model_options={"dtype": torch.float8_e4m3fn})
    beside = ApplyComposed.execute(eighth, LibraryHandle.of(taught), "*", 1.0).result[0]
    plain = ApplyComposed.execute(models[0], LibraryHandle.of(taught), "*", 1.0).result[0]
    clip = models[1].clone()
    clip.patcher.set_injections("bypass_lora", bypassed.injections["bypass_lora"])
    return {
        "bypass LoRA": refused(bypassed, models[1]),
        "bypass LoRA on the text encoder": refused(models[0], clip),
        "concepts beside the weights": refused(beside, models[1]),
        "hooks on the text encoder": refused(models[0], hooked(models[1])),
        "concepts in the weights": refused(plain, models[1]),
        "nothing": refused(models[0], models[1]),
    }


def kinds() -> dict[str, str]:
    """Tokenizers of the host's own kinds before models of two kinds; what they hold does not matter."""
    flux, chroma, sdxl = (
        comfy.supported_models.Flux({}), comfy.supported_models.Chroma({}), comfy.supported_models.SDXL(SDXL),
    )  # fmt: skip

    def said(config: Any, tokenizer: type) -> str:
        clip = type("Clip", (), {"tokenizer": object.__new__(tokenizer)})
        return other_kind(config, clip)

    return {
        "umT5 on Flux": said(flux, comfy.text_encoders.wan.WanT5Tokenizer),
        "T5 alone on Flux": said(flux, comfy.text_encoders.pixart_t5.PixArtTokenizer),
        "Flux's own": said(flux, comfy.text_encoders.flux.FluxTokenizer),
        "Chroma's own": said(chroma, comfy.text_encoders.pixart_t5.PixArtTokenizer),
        "SD1.5's on SDXL": said(sdxl, comfy.sd1_clip.SD1Tokenizer),
        "another pack's on SDXL": said(sdxl, tiny.NoiseClip),
        "one without a tokenizer": other_kind(sdxl, tiny.NoiseClip(models[0].model)),
        "a model without a kind": other_kind(load_demo_model()[0].model.model_config, models[1]),
    }


def quantised() -> list[bool]:
    """Whether two quantised weights hash alike: a weight and itself, one packed value changed, its scale changed. None is
    unpacked for it."""
    weight = QuantizedTensor.from_float(noise(64, 64), "TensorCoreFP8Layout")
    packed, scale = QuantizedTensor.from_float(noise(64, 64), "TensorCoreFP8Layout"), 2 * noise(64, 64)
    packed._qdata.view(torch.uint8)[0, 0] ^= 1
    others = (QuantizedTensor.from_float(noise(64, 64), "TensorCoreFP8Layout"), packed)
    others = (*others, QuantizedTensor.from_float(scale, "TensorCoreFP8Layout"))
    QuantizedTensor.dequantize = None
    return [weights_hash([("w", weight)]) == weights_hash([("w", other)]) for other in others]


def pieces() -> dict[str, int]:
    """Of words, for tokenizers of the host's own and others."""
    one = type("Clip", (), {"tokenizer": comfy.sd1_clip.SD1Tokenizer()})
    two = type("Clip", (), {"tokenizer": comfy.text_encoders.flux.FluxTokenizer()})
    for clip in (one, two):
        clip.tokenize = clip.tokenizer.tokenize_with_weights
    told = {f"{word} {name}": pieces_of(clip, word) for word in ("dog", "zorv") for name, clip in (("CLIP", one), ("T5", two))}
    return told | {
        "dogdog": pieces_of(one, "dog dog"),
        "none": pieces_of(tiny.NoiseClip(models[0].model), "dog"),
        "demo": pieces_of(models[1], "dog"),
    }


def tokens_of_parentheses() -> dict[str, bool]:
    """What SD1's own tokenizer makes of a trigger with parentheses: the same tokens as of its words alone, all of weight 1."""
    miku = Record(1, "miku", "miku_(vocaloid)", "(girl:0)", "concepts/1.safetensors", "", "", "", "", [], {}, {})
    tokenizer = comfy.sd1_clip.SD1Tokenizer()

    def read(text: str) -> list[tuple[int, float]]:
        return [tuple(token) for chunk in tokenizer.tokenize_with_weights(text)["l"] for token in chunk]

    subject = "a photo of miku_(vocaloid) (girl:0)"
    prompts = {
        "named": (read_prompt("a photo of @miku", [miku], weights=True).text, subject),
        "written out": (read_prompt("(a) miku_(vocaloid)", [miku], weights=True).text, "a miku_(vocaloid)"),
        "preview": (default_prompt(TrainingRequest("miku", miku.trigger, miku.class_word, [])), subject),
        "preview of an earlier one": (default_prompt(miku), subject),
    }
    told = {}
    for what, (text, meant) in prompts.items():
        plain, tokens = tokenizer.clip_l.tokenizer(meant)["input_ids"], read(text)
        own = [weight for number, weight in tokens[: len(plain)] if number not in plain[:2]]
        told[what] = [number for number, _ in tokens][: len(plain)] == plain and set(own) == {1.0}
    return told


with torch.inference_mode():
    models = (tiny.load("flux", folder)[0], *load_demo_model()[1:])
    parts = parts_of(*models)
    boot.report(
        changes=changes(),
        kept=parts_of(*models) == parts,
        told_apart=told_apart(),
        refused=refusals(),
        kinds=kinds(),
        tokens=tokens_of_parentheses(),
        pieces=pieces(),
        quantised=quantised(),  # last: afterwards nothing can be unpacked
    )
