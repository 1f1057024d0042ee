"""The user's MODEL, CLIP and VAE as the core takes them.

Training runs on the user's own MODEL: hooks are put on its layers and taken off again, no weight is written. Two things stand
in the way, and both are solved in `training_model`: weights that the host loaded are inference tensors, through which nothing
can be differentiated; and under dynamic VRAM a layer's weight is only lent for the time of its forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
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

from ...seqlora.demo.pictures import contexts, generic_captions
from ...seqlora.diffusion.model import NO_TRIGGERS
from ...seqlora.errors import SeqLoRAError
from ...seqlora.families import FAMILIES, family_of
from ...seqlora.io.text import literal
from ...seqlora.lora.layouts import layout_from_native
from ...seqlora.lora.targets import TARGETS, choose_layers, layer_shapes, linear_layers, repeated_blocks
from ...seqlora.lora.types import Triggers, Vectors
from ...seqlora.training.captions import CONTEXTS, GENERIC_CAPTIONS
from .belonging import check_latents_fit, check_through, other_kind, pieces_of
from .demo_model import DemoConfig
from .denoiser import Caption, HostDenoiser
from .gradients import checkpointed, clone_norm_inputs, plain_operations, without_inference_mode
from .identity import fingerprint, parts_of
from .learning_text import LearningText
from .own_words import encoders_of

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
    check_through(model, clip)
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

    def __init__(self, patcher: Any, original: Any, clip: Any, vae: Any):
        self.patcher, self.clip, self.vae = patcher, clip, vae
        self.denoiser = HostDenoiser(patcher)
        self.text_encoders: Sequence[str] = list(encoders_of(clip))
        base = patcher.model
        self.layout = layout_from_native(key for key in base.state_dict() if key.startswith("diffusion_model."))
        self.fingerprint = fingerprint(original)
        self.parts = parts_of(original, clip, vae)
        self.remark = other_kind(base.model_config, clip)
        demo = isinstance(base.model_config, DemoConfig)
        self.family = "demo" if demo else family_of(self.layout, layer_shapes(self.layers("attention")))
        self.generic_captions: Sequence[str] = generic_captions() if demo else GENERIC_CAPTIONS
        self.contexts: Sequence[str] = contexts() if demo else CONTEXTS
        self.default_guidance = 3.0 if self.denoiser.flow else 6.0
        # Models with distilled guidance are taught as they are without it.
        self._extra = {"guidance": 1.0} if base.model_config.unet_config.get("guidance_embed") else {}
        self._shape: tuple[int, ...] = ()  # of the first picture's latents
        self._prompts: dict[str, Any] = {}  # conditionings of what is drawn

    def layers(self, targets: str) -> dict[str, nn.Module]:
        return choose_layers(self.patcher.model.diffusion_model, targets)

    def linear_layers(self) -> dict[str, nn.Module]:
        return linear_layers(self.patcher.model.diffusion_model)

    @property
    def latent_shape(self) -> Sequence[int]:
        side = FAMILIES[self.family].resolution
        return self.encode_pictures([torch.full((side, side, 3), 0.5)])[0].shape

    def decode(self, latents: Tensor) -> Tensor:
        """Of a moving picture the first frame."""
        self.denoiser.rest()
        with torch.inference_mode():
            decoded = self.vae.decode(self.patcher.model.process_latent_out(latents))
        return decoded.reshape(len(latents), -1, *decoded.shape[-3:])[:, 0].float().cpu().clone()

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

    def pieces(self, word: str) -> int:
        return pieces_of(self.clip, literal(word))

    def own_vectors(self, word: str, count: int) -> Vectors:
        return self._learning_text.own_vectors(word, count)

    def encode_captions(self, captions: Sequence[str], triggers: Triggers = NO_TRIGGERS) -> list[Caption]:
        known: dict[str, Caption] = {}
        for text in dict.fromkeys(captions):
            options = comfy.sampler_helpers.convert_cond(self._encode(literal(text), triggers)[:1])[0]
            known[text] = Caption(without_inference_mode(options | self._extra))
        return [known[text] for text in captions]

    def _encode(self, text: str, triggers: Triggers) -> Any:
        if triggers and self.text_encoders:
            return self._learning_text.encode(text, triggers)
        self.denoiser.rest()
        with torch.inference_mode():
            return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    @cached_property
    def _learning_text(self) -> LearningText:
        return LearningText(self.clip, self.denoiser.rest)

    def draw(self, prompts: Sequence[str], seed: int, triggers: Triggers = NO_TRIGGERS) -> list[Tensor]:
        """A picture (h, w, 3) in 0..1 for each prompt by the host's own sampler, all from one noise and as large as the first
        training picture, with whatever is attached to the layers and stands for these triggers."""
        latent, drawn = torch.zeros(1, *self._shape), []
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            negative, positive = self._conditioning(""), [self._conditioning(text, triggers) for text in prompts]
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

    def _conditioning(self, text: str, triggers: Triggers = NO_TRIGGERS) -> list[Any]:
        """As a prompt node gives it, and for models with distilled guidance as one that sets it. Encoded once where nothing is
        learned of it: a large text encoder pushes the model out."""
        if not triggers and text in self._prompts:
            return self._prompts[text]
        encoded, extra = self._encode(text, triggers), {"guidance": 3.5} if self._extra else {}
        found = [[without_inference_mode(cond), without_inference_mode(options) | extra] for cond, options in encoded]
        return found if triggers else self._prompts.setdefault(text, found)

    def _guidance(self) -> float:
        """The usual cfg of this kind of model."""
        if isinstance(self.patcher.model, comfy.model_base.Flux):
            return 1.0
        return 3.0 if self.denoiser.flow else 6.0
