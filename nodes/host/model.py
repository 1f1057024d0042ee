"""The user's MODEL, CLIP and VAE as the core takes them.

Training runs on the user's own MODEL: hooks are put on its layers and taken off again, no weight is written. Two things stand
in the way, and both are solved in `training_model`: weights that the host loaded are inference tensors, through which nothing
can be differentiated; and under dynamic VRAM a layer's weight is only lent for the time of its forward.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ldm.modules.attention
import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import comfy.weight_adapter
import torch
from torch import Tensor, nn

from ...seqlora.demo.pictures import generic_captions
from ...seqlora.diffusion.fingerprint import some_values, weights_hash
from ...seqlora.diffusion.model import NO_TRIGGERS
from ...seqlora.errors import SeqLoRAError
from ...seqlora.families import family_of
from ...seqlora.lora.layouts import layout_from_native
from ...seqlora.lora.targets import TARGETS, choose_layers, layer_shapes, linear_layers, repeated_blocks
from ...seqlora.lora.types import Triggers, Vectors
from ...seqlora.training.captions import GENERIC_CAPTIONS
from .belonging import check_latents_fit
from .demo_model import DemoConfig
from .denoiser import Caption, HostDenoiser
from .gradients import checkpointed, clone_norm_inputs, plain_operations, without_inference_mode

DRAWING_STEPS = 12  # of a preview


def has_accelerator() -> bool:
    return not comfy.model_management.is_device_cpu(comfy.model_management.get_torch_device())


@contextmanager
def training_model(model: Any, clip: Any, vae: Any, gradient_checkpointing: bool) -> Iterator[HostModel]:
    """MODEL, CLIP and VAE as the core takes them, in a room where gradients can be taken. Afterwards all is as before.

    Raises SeqLoRAError where the model cannot be trained or memory runs out.
    """
    management = comfy.model_management
    for name, given in (("model", model), ("clip", clip), ("vae", vae)):
        if given is None or getattr(given, "first_stage_model", given) is None:  # what loaders give where a file lacks it
            raise SeqLoRAError(f"The {name} that is connected holds nothing", "its checkpoint lacks it, load it from elsewhere")
    with ExitStack() as undo:
        undo.callback(management.soft_empty_cache)
        undo.enter_context(torch.inference_mode(False))  # the host runs every node inside inference mode
        if hasattr(management, "in_training"):  # plain instead of fused operations, which have no gradient
            undo.callback(setattr, management, "in_training", management.in_training)
            management.in_training = True
        patcher = _own_patcher(model)
        undo.callback(_let_go, patcher)
        taught = HostModel(patcher, model, clip, vae)
        undo.callback(taught.denoiser.rest)
        undo.enter_context(plain_operations())
        undo.enter_context(clone_norm_inputs(patcher.model.diffusion_model))
        if gradient_checkpointing:
            undo.enter_context(checkpointed(blocks_with(taught.layers(TARGETS[-1]), patcher.model.diffusion_model)))
        try:
            yield taught
        except Exception as error:
            if not any(management.is_oom(cause) for cause in causes(error)):
                raise
            told = SeqLoRAError("There is not enough memory for this training", "lower batch_size or use smaller images")
            if isinstance(error, SeqLoRAError):  # the core has said so already, and what stays
                told = error
            if not gradient_checkpointing:
                told = told.also("set gradient_checkpointing to on in SeqLoRA Training Options, which needs much less")
            raise told from error


def blocks_with(layers: Mapping[str, nn.Module], model: nn.Module) -> list[nn.Module]:
    """The repeated blocks that hold one of these layers. Others would hand on, in containers of any kind, what looks as if it
    needed a gradient."""
    wanted = {id(layer) for layer in layers.values()}
    return [block for block in repeated_blocks(model) if any(id(part) in wanted for part in block.modules())]


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _own_patcher(model: Any) -> Any:
    """A patcher of our own for the user's model; its patches (an upstream LoRA) are part of the base."""
    try:
        # Dynamic VRAM takes weights away between forward and backward. The host then reads a second copy from disk.
        patcher = model.clone(disable_dynamic=True)
    except (RuntimeError, TypeError) as error:  # the second: a patcher of another pack that knows of no dynamic VRAM
        raise SeqLoRAError(
            "This model's loader cannot make the copy that training needs under dynamic VRAM",
            "load the model with another node, or start ComfyUI with --disable-dynamic-vram",
        ) from error
    if patcher.model.get_dtype_inference() == torch.float16:
        # Gradients of an average over all pixels are too small for fp16.
        bf16 = comfy.model_management.should_use_bf16(patcher.load_device)
        patcher.set_model_compute_dtype(torch.bfloat16 if bf16 else torch.float32)
    return patcher


def _let_go(patcher: Any) -> None:
    patcher.cleanup()
    if patcher.force_cast_weights:  # the host puts back what set_model_compute_dtype changed when it unloads
        with torch.inference_mode():
            comfy.model_management.unload_model_and_clones(patcher, unload_additional_models=False)


class HostModel:
    """The core's `Model` over the host's MODEL, CLIP and VAE."""

    text_encoders: Sequence[str] = ()

    def __init__(self, patcher: Any, original: Any, clip: Any, vae: Any):
        self.patcher, self.clip, self.vae = patcher, clip, vae
        self.denoiser = HostDenoiser(patcher)
        base = patcher.model
        self.layout = layout_from_native(key for key in base.state_dict() if key.startswith("diffusion_model."))
        self.fingerprint = fingerprint(original)
        self.parts = {
            "model": weights_hash(_own_weights(original), _patches(original)),
            "sampling": _sampling(original),
            "text encoder": _weights(clip, "cond_stage_model", getattr(clip, "layer_idx", None), _patches(clip)),
            "VAE": _weights(vae, "first_stage_model"),
        }
        demo = isinstance(base.model_config, DemoConfig)
        self.family = "demo" if demo else family_of(self.layout, layer_shapes(self.layers("attention")))
        self.generic_captions: Sequence[str] = generic_captions() if demo else GENERIC_CAPTIONS
        # Models with distilled guidance are taught as they are without it.
        self._extra = {"guidance": 1.0} if base.model_config.unet_config.get("guidance_embed") else {}
        self._shape: tuple[int, ...] = ()  # of the first picture's latents
        self._prompts: dict[str, Any] = {}  # conditionings of what is drawn

    def layers(self, targets: str) -> dict[str, nn.Module]:
        return choose_layers(self.patcher.model.diffusion_model, targets)

    def linear_layers(self) -> dict[str, nn.Module]:
        return linear_layers(self.patcher.model.diffusion_model)

    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        self.denoiser.rest()
        base, latents = self.patcher.model, []
        for picture in pictures:
            with torch.inference_mode():
                encoded = base.process_latent_in(self.vae.encode(picture[None, ..., :3]))
            check_latents_fit(encoded, picture, base.latent_format)
            latents.append(encoded[0].float().cpu().clone())
        self._shape = tuple(latents[0].shape)
        return latents

    def own_vectors(self, word: str, count: int) -> Vectors:
        return {}

    def encode_captions(self, captions: Sequence[str], triggers: Triggers = NO_TRIGGERS) -> list[Caption]:
        self.denoiser.rest()
        known: dict[str, Caption] = {}
        for text in dict.fromkeys(captions):
            with torch.inference_mode():
                encoded = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(literal(text)))
            options = comfy.sampler_helpers.convert_cond(encoded[:1])[0]
            known[text] = Caption(without_inference_mode(options | self._extra))
        return [known[text] for text in captions]

    def draw(self, prompts: Sequence[str], seed: int) -> list[Tensor]:
        """A picture (h, w, 3) in 0..1 for each prompt by the host's own sampler, all from one noise and as large as the first
        training picture, with whatever is attached to the layers."""
        latent, drawn = torch.zeros(1, *self._shape), []
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            *positive, negative = [self._conditioning(text) for text in (*prompts, "")]
            self.denoiser.load()  # encoding may have pushed it out; and the host's sampler is content with a part of it
            method, schedule = "euler", "simple" if self.denoiser.flow else "normal"
            how = (DRAWING_STEPS, self._guidance(), method, schedule)
            for cond in positive:
                drawn.append(
                    comfy.sample.sample(self.patcher, noise, *how, cond, negative, latent, disable_pbar=True, seed=seed)
                )
            self.denoiser.rest()
            with torch.inference_mode():
                pictures = [self.vae.decode(samples) for samples in drawn]
        return [picture.reshape(-1, *picture.shape[-3:])[0].float().cpu().clone() for picture in pictures]

    def _conditioning(self, text: str) -> list[Any]:
        """As a prompt node gives it, and for models with distilled guidance as one that sets it. Encoded once: a large text
        encoder pushes the model out."""
        if text not in self._prompts:
            with torch.inference_mode():
                encoded = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
            extra = {"guidance": 3.5} if self._extra else {}
            self._prompts[text] = [
                [without_inference_mode(cond), without_inference_mode(options) | extra] for cond, options in encoded
            ]
        return self._prompts[text]

    def _guidance(self) -> float:
        """The usual cfg of this kind of model."""
        if isinstance(self.patcher.model, comfy.model_base.Flux):
            return 1.0
        return 3.0 if self.denoiser.flow else 6.0


def literal(caption: str) -> str:
    """As the host must be given it to take parentheses as text: in a prompt they set weights, so that `miku_(vocaloid)`
    would lose them and `(zorv:0)` mean nothing. A caption means what it says, as it does without the host."""
    return re.sub(r"[()]", r"\\\g<0>", caption)


def fingerprint(patcher: Any, samples: int = 8) -> str:
    """A hash of a few values of a few weights as they were before any patch, and of the patches."""
    return fingerprints(patcher, samples)[0]


def fingerprints(patcher: Any, samples: int = 8) -> tuple[str, str]:
    """Its `fingerprint`, and that of the same model without patches."""
    digest = hashlib.sha256()
    weights = list(_own_weights(patcher))
    for name, weight in weights[:: max(1, len(weights) // samples)]:
        digest.update(name.encode() + _few_values(weight))
    bare = digest.hexdigest()[:16]
    for patch in _patch_bytes(patcher.patches, _few_values):
        digest.update(patch)
    return digest.hexdigest()[:16], bare


def _weights(holder: Any, name: str, *more: Any) -> str:
    """A hash of the weights of a part of CLIP or VAE; other packs' need not have it."""
    module = getattr(holder, name, None)
    tensors = module.state_dict().items() if isinstance(module, nn.Module) else ()
    return weights_hash(tensors, f"{type(holder).__name__} {type(module).__name__} {more}")


def _own_weights(patcher: Any) -> Iterator[tuple[str, Tensor]]:
    """As they were before any patch."""
    for name, weight in sorted(patcher.model.diffusion_model.state_dict().items()):
        backup = patcher.backup.get(f"diffusion_model.{name}")
        yield name, backup.weight if backup else weight


def _patches(holder: Any) -> str:
    """A hash of what is patched onto a MODEL or CLIP, such as LoRAs; "" for nothing."""
    patches = getattr(getattr(holder, "patcher", holder), "patches", {})
    return hashlib.sha256(b"".join(_patch_bytes(patches, some_values))).hexdigest()[:16] if patches else ""


def _patch_bytes(patches: Mapping[str, Any], values: Callable[[Tensor], bytes]) -> Iterator[bytes]:
    """What a hash of patches is made of: which weight, how strong, and some values of each tensor."""
    for name in sorted(patches):
        for patch in patches[name]:
            tensors = [part for part in getattr(patch[1], "weights", patch[1]) if isinstance(part, Tensor)]
            yield f"{name} {patch[0]} {patch[2]}".encode() + b"".join(values(part) for part in tensors)


def _sampling(patcher: Any) -> str:
    """A hash of how noise levels and predictions are meant, which nodes upstream can change."""
    sampling = patcher.get_model_object("model_sampling")
    kinds = [kind.__name__ for kind in type(sampling).__mro__]
    numbers = {name: value for name, value in vars(sampling).items() if isinstance(value, (int, float, str, bool))}
    return weights_hash(sorted(sampling.named_buffers()), f"{kinds} {sorted(numbers.items())}")


def _few_values(weight: Tensor) -> bytes:
    if weight.is_meta:
        return b""
    part = weight.detach()
    part = part.dequantize() if hasattr(part, "dequantize") and type(part) is not Tensor else part
    return part.flatten()[:16].float().cpu().half().numpy().tobytes()
