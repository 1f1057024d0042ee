"""Trains models in the states in which hosts have them: fp16, fp8, with a LoRA applied upstream, with captions of unequal
length, with images of unequal size. Argument: an empty folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import boot
import comfy.model_management
import comfy.sd
import tiny
import torch
from checkpoints import sdxl_without_weights
from comfy_api.latest._io import HiddenHolder
from seqlora_pack.nodes import host
from seqlora_pack.nodes.apply import ApplyComposed
from seqlora_pack.nodes.host.demo_model import load_demo_model
from seqlora_pack.nodes.library import LibraryHandle
from seqlora_pack.nodes.train import TrainConcept, split_captions, split_pictures
from seqlora_pack.seqlora.errors import SeqLoRAError

TrainConcept.hidden = HiddenHolder.from_dict({})  # the host sets it for a node that it runs
folder = Path(sys.argv[1])
tiny.use_folder(folder)
root = folder / "seqlora"
settings = tiny.settings_for("flux", steps=3)


def in_dtype(dtype: torch.dtype, compute: torch.dtype | None = None):
    """The Flux-class model with weights in `dtype`, computing in `compute`."""
    with torch.inference_mode():
        patcher = comfy.sd.load_diffusion_model(str(folder / "flux.safetensors"), model_options={"dtype": dtype})
        patcher.model.manual_cast_dtype = compute
    return patcher, *models[1:]


def kept(models, name: str, **changes) -> dict[str, object]:
    """Trains and tells whether the model still is what it was, and whether it learned anything."""
    before = tiny.outputs(models[0])
    taught = tiny.train(models, tiny.new_library(root, name), settings.with_(**changes))
    coefficients = max(float(pair.up.abs().max()) for pair in taught.library.load("thing").values())
    state = [str(models[0].model.get_dtype_inference()), str(models[0].model.get_dtype())]
    return {
        "kept": torch.equal(before, tiny.outputs(models[0])),
        "finite": bool(before.isfinite().all()),
        "learned": coefficients,
        "dtypes": state,
        "fingerprint": taught.library.base.fingerprint,
    }


def joined_and_single() -> float:
    """Captions of unequal length cannot be joined for Flux: they run one by one, with the same results."""
    with torch.inference_mode(), host.training_model(*models, False) as model, torch.no_grad():
        model.clip.tokenize = str.split
        full = model.clip.encode_from_tokens_scheduled
        model.clip.encode_from_tokens_scheduled = lambda tokens: [[full(tokens)[0][0][:, : len(tokens)], full(tokens)[0][1]]]
        captions = model.encode_captions(["one two three", "one", "four five six"])
        x = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        sigma = torch.tensor([0.2, 0.5, 0.9])
        together = model.denoiser(x, sigma, captions)
        alone = torch.cat([model.denoiser(x[i : i + 1], sigma[i : i + 1], [captions[i]]) for i in range(3)])
        pair = model.denoiser(x[::2], sigma[::2], captions[::2])
        model.clip.encode_from_tokens_scheduled = full
        return max(float((together - alone).abs().max()), float((pair - alone[::2]).abs().max()))


def node(images: list[torch.Tensor], **changes) -> object:
    """TrainConcept as the host calls it: every input a list."""
    given = {
        "model": models[0],
        "clip": models[1],
        "vae": models[2],
        "library": LibraryHandle.of(tiny.new_library(root, "sizes")),
        "concept_name": "sizes",
        "trigger": "zobiku",
        "class_word": "thing",
        "steps": 3,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "basis_learning_rate": 3e-3,
        "seed": 0,
    }
    given |= changes
    captions = given.pop("captions", None)
    with torch.inference_mode():
        return TrainConcept.execute(images=images, captions=captions, **{name: [value] for name, value in given.items()})


def sdxl_knows_size() -> bool:
    """What SDXL gets beside the text is what its sampler would give it for pictures of 8 times the latent's size."""
    denoiser = host.HostDenoiser.__new__(host.HostDenoiser)
    denoiser.model, denoiser.device = sdxl_without_weights(), torch.device("cpu")
    pooled = torch.randn(1, 1280, generator=torch.Generator().manual_seed(0))
    caption = host.Caption({"cross_attn": torch.zeros(1, 77, 2048), "pooled_output": pooled, "model_conds": {}})
    inputs = denoiser.inputs_for(caption, torch.zeros(1, 4, 12, 20))
    expected = denoiser.model.encode_adm(pooled_output=pooled, width=160, height=96)
    return torch.equal(inputs["y"].cond, expected) and inputs["y"].cond.shape == (1, 2816)


def out_of_memory() -> str:
    try:
        with torch.inference_mode(), host.training_model(*models, False):
            raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")
    except SeqLoRAError as error:
        return str(error)


def out_of_memory_on_the_way() -> tuple[str, dict]:
    """At the second step; what is said, and the report of the next run, with gradient_checkpointing."""
    passes = []

    def full(module, args):
        passes.append(torch.is_grad_enabled() and len(args[0]) > 1)  # with one picture the base model is measured
        if sum(passes) == 2:
            raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")

    handle = models[0].model.diffusion_model.register_forward_pre_hook(full)
    library = LibraryHandle.of(tiny.new_library(root, "full"))
    said = refused(library=library, concept_name="new", gradient_checkpointing="off")
    handle.remove()
    again = node([torch.stack(tiny.pictures(2))], library=library, concept_name="new", gradient_checkpointing="on")
    return said, json.loads(again.result[2])


def refused(**changes) -> str:
    try:
        node([torch.stack(tiny.pictures(2))], **changes)
    except SeqLoRAError as error:
        return str(error)
    return ""


def wrong_text(family: str, width: int | None, pooled: int | None) -> str:
    """What a training on this family says of a text encoder of other widths; None: as it should be, 0: it gives none."""
    model, clip, vae = tiny.load(family, folder)
    clip.width, clip.pooled = clip.width if width is None else width, clip.pooled if pooled is None else pooled
    return refused(model=model, clip=clip, vae=vae, library=new_handle(f"text {family} {width} {pooled}"))


def wrong_vae(change) -> str:
    """The same of a VAE whose latents are changed."""
    vae = tiny.load("flux", folder)[2]
    encode = vae.encode
    vae.encode = lambda pixels: change(encode(pixels))
    return refused(vae=vae, library=new_handle("vae"))


def new_handle(name: str) -> LibraryHandle:
    return LibraryHandle.of(tiny.new_library(root, name))


def demo_with_another_text() -> str:
    model, _, vae = load_demo_model()
    return refused(model=model, clip=tiny.load("sd15", folder)[1], vae=vae, library=new_handle("demo"))


models = tiny.load("flux", folder)
plain = kept(models, "plain")
half = kept(in_dtype(torch.float16), "half")
eighth = kept(in_dtype(torch.float8_e4m3fn, torch.float32), "eighth")

# A LoRA upstream is part of the base; the bare model beneath stays what it was.
bare = tiny.outputs(models[0])
library = LibraryHandle.of(tiny.new_library(root, "plain"))
with torch.inference_mode():
    upstream = ApplyComposed.execute(models[0], library, "*", 20.0).result[0]
patched = tiny.outputs(upstream)
above = kept((upstream, *models[1:]), "above")
above_kept = torch.equal(patched, tiny.outputs(upstream)) and torch.equal(bare, tiny.outputs(models[0]))

# A batch with an alpha channel, and single images of another size: what dataset nodes put out.
small = torch.cat([torch.stack(tiny.pictures(0, 2, 64)), torch.ones(2, 64, 64, 1)], -1)
sizes = node([small, tiny.pictures(1, 1, 96)[0][None, :72]], captions=["a", "zobiku b", "c"])
library, losses, report = sizes.result
again = node([small, tiny.pictures(1, 1, 96)[0][None, :72]], captions=["a", "zobiku b", "c"])

boot.report(
    plain=plain,
    half=half,
    eighth=eighth,
    above=above,
    above_kept=above_kept,
    upstream_changed=float((patched - bare).abs().max()),
    joined_and_single=joined_and_single(),
    sizes_losses=len(losses["loss"]),
    sizes_report=report,
    sizes_text=sizes.ui.as_dict()["text"][0],
    again_text=again.ui.as_dict()["text"][0],
    again_losses=len(again.result[1]["loss"]),
    pictures=[list(picture.shape) for picture in split_pictures([small, torch.zeros(1, 8, 9, 3)])],
    captions=[split_captions(*case) for case in [(["a\nb\n"], 2), (["", " "], 2), (["a", ""], 2), ([], 3), (["a\nb"], 1)]],
    refused={
        "no text encoder": refused(clip=None, concept_name="new"),
        "text of SD on Flux": wrong_text("flux", 768, None),
        "text of SD on SD3": wrong_text("sd3", 768, None),
        "text of Flux on SD": wrong_text("sd15", 4096, None),
        "narrow pooled text on Flux": wrong_text("flux", None, 512),
        "pooled text of Flux on SD3": wrong_text("sd3", None, 768),
        "text of SD on the demo": demo_with_another_text(),
        "VAE of video": wrong_vae(lambda latents: latents.unsqueeze(2)),
        "VAE of other pixels": wrong_vae(lambda latents: latents[..., ::2, ::2]),
        "wrong VAE": refused(vae=tiny.load("sd15", folder)[2], concept_name="new"),
        "caption count": refused(captions=["a", "b"], concept_name="new"),
        "taken name": refused(seed=1),
        "out of memory": out_of_memory(),
        "wrong model": refused(model=tiny.load("sd3", folder)[0], concept_name="new"),
    },
    full=out_of_memory_on_the_way(),
    sdxl_size=sdxl_knows_size(),
)
