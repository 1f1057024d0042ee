"""The one room that touches ComfyUI's private interfaces: folders, the user's MODEL, CLIP and VAE, memory, progress.

Training runs on the user's own MODEL: hooks are put on its layers and taken off again, no weight is written. Two things stand
in the way, and both are solved in `training_model`: weights that the host loaded are inference tensors, through which nothing
can be differentiated; and under dynamic VRAM a layer's weight is only lent for the time of its forward.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
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
import folder_paths
import torch
from server import PromptServer
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..seqlora.adapter import Pair, choose_layers
from ..seqlora.demo.pictures import generic_captions
from ..seqlora.errors import SeqLoRAError
from ..seqlora.keys import layout_from_native
from ..seqlora.library import MANIFEST
from ..seqlora.names import checked_name
from ..seqlora.objective import flow_weight, from_table, logit_normal, min_snr_weight
from ..seqlora.teaching import GENERIC_CAPTIONS
from ..seqlora.trainer import Progress, Steps, finish
from .demo_host import DemoConfig

FOLDER = "seqlora"
DRAWING_STEPS = 12  # of a preview
TEXT_INTERVAL = 0.5  # seconds between status texts
Interrupted = comfy.model_management.InterruptProcessingException


# --- Folders ------------------------------------------------------------------------------------------------------------


def register_folder() -> None:
    """Makes `models/seqlora` known, beside what extra_model_paths.yaml may have named."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    # An unknown key starts with an empty set of extensions, which means every file to the host.
    folder_paths.folder_names_and_paths[FOLDER][1].add(".safetensors")


def library_names() -> list[str]:
    """All libraries in all folders, sorted."""
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]
    return sorted(
        {path.parent.name for root in roots if root.is_dir() for path in root.glob(f"*/{MANIFEST}")}, key=str.casefold
    )


def library_path(name: str) -> Path:
    """The folder of the library of this name: where it is, or where a new one goes. Names only: a path is refused."""
    name = checked_name(name, "library name")
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]
    found = [root / name for root in roots if (root / name / MANIFEST).is_file()]
    return found[0] if found else roots[0] / name


def next_lora_path(prefix: str) -> tuple[Path, str]:
    """A new file in output/loras, which the host's LoRA loaders list, and its name there."""
    try:
        folder, name, number, subfolder, _ = folder_paths.get_save_image_path(
            prefix, str(Path(folder_paths.get_output_directory()) / "loras")
        )
    except Exception as error:  # the host raises a bare one for a folder outside of its own
        raise SeqLoRAError(
            f"filename_prefix is '{prefix}', which is no place inside output/loras; use a plain name."
        ) from error
    file = f"{name}_{number:05}.safetensors"
    return Path(folder) / file, (Path(subfolder) / file).as_posix()


def preview_folder() -> tuple[Path, dict[str, str]]:
    """A folder that the host empties when it starts, and how its viewer is asked for a file there."""
    folder = Path(folder_paths.get_temp_directory()) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder, {"subfolder": FOLDER, "type": "temp"}


# --- Progress -----------------------------------------------------------------------------------------------------------


def run_with_progress(
    steps: Steps[Any], node_id: str | None, follow: Callable[[Progress], str | None] = lambda progress: None
) -> Any:
    """Runs a training to its end, shows how far it is, and stops it when the user cancels. Returns its result."""
    bar, phase, said = None, "", 0.0

    def tell(progress: Progress) -> str | None:
        nonlocal bar, phase, said
        comfy.model_management.throw_exception_if_processing_interrupted()
        if bar is None or progress.phase != phase or progress.step == 1:
            bar, phase = comfy.utils.ProgressBar(progress.steps), progress.phase
        bar.update_absolute(progress.step, progress.steps)
        if progress.note:
            logging.warning("SeqLoRA: %s", progress.note)
        if progress.note or time.monotonic() - said >= TEXT_INTERVAL or progress.step == progress.steps:
            said = time.monotonic()
            say(node_id, progress.note or describe(progress))
        return follow(progress)

    try:
        return finish(steps, tell)  # closes it, which takes the hooks off the model
    except Interrupted:
        if phase == "training":
            say(node_id, "cancelled; queue the same again to go on from here")
        raise


def describe(progress: Progress) -> str:
    loss = f", loss {progress.loss:.4f}" if progress.loss == progress.loss else ""
    return f"{progress.phase} {progress.step}/{progress.steps}{loss}"


def say(node_id: str | None, text: str) -> None:
    """Shows a line of text on a node in the editor."""
    server = getattr(PromptServer, "instance", None)  # None where there is no server, as in tests
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id, server.client_id)


def send(event: str, data: dict[str, Any]) -> None:
    """Sends an event to every open editor; what is in it must not change any more."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(event, data)


def add_routes(routes: Iterable[tuple[str, str, Any]]) -> None:
    """Adds (method, path, handler) to the host's server, behind its middleware; without a server nothing."""
    server = getattr(PromptServer, "instance", None)
    for method, path, handler in routes if server is not None else ():
        server.routes.route(method, path)(handler)


# --- Training on the user's model ---------------------------------------------------------------------------------------


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
            raise SeqLoRAError(f"The {name} that is connected holds nothing; its checkpoint lacks it, load it from elsewhere.")
    with ExitStack() as undo:
        undo.callback(management.soft_empty_cache)
        undo.enter_context(torch.inference_mode(False))  # the host runs every node inside inference mode
        if hasattr(management, "in_training"):  # plain instead of fused operations, which have no gradient
            undo.callback(setattr, management, "in_training", management.in_training)
            management.in_training = True
        patcher = _own_patcher(model)
        undo.callback(_let_go, patcher)
        taught = HostModel(patcher, model, clip, vae)
        undo.enter_context(norms_keep_inputs(patcher.model.diffusion_model))
        if gradient_checkpointing:
            undo.enter_context(checkpointed(transformer_blocks(patcher.model.diffusion_model)))
        try:
            yield taught
        except Exception as error:
            if not any(management.is_oom(cause) for cause in causes(error)):
                raise
            told = "There is not enough memory for this training; lower batch_size or use smaller images."
            if isinstance(error, SeqLoRAError):  # the core has said so already, and what stays
                told = str(error)
            if not gradient_checkpointing:
                told = f"{told.rstrip('.')}; turn on gradient_checkpointing, which needs much less."
            raise SeqLoRAError(told) from error


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
            "This model's loader cannot make the copy that training needs under dynamic VRAM; "
            "load the model with another node, or start ComfyUI with --disable-dynamic-vram."
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


def ordinary_weights(module: nn.Module) -> None:
    """Replaces inference tensors among the parameters and buffers by equal ordinary ones, one at a time.

    Must run outside of inference mode. Modules keep their identity and every value its bits, so nothing needs undoing; the
    alternative, a deep copy, would read the checkpoint anew and take twice the memory.
    """
    for part in module.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None and weight.is_inference():
                part._parameters[name] = nn.Parameter(weight.detach().clone(), requires_grad=False)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and buffer.is_inference():
                part._buffers[name] = buffer.clone()


def ordinary(value: Any) -> Any:
    """The same outside of inference mode: tensors in it are copied."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: ordinary(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(ordinary(part) for part in value)
    return value


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost members of module lists that are run as a whole; a UNet's are inside its levels."""
    found: list[nn.Module] = []

    def search(module: nn.Module, in_list: bool) -> None:
        if in_list and not isinstance(module, (nn.Sequential, nn.ModuleList)) and next(module.children(), None) is not None:
            found.append(module)
            return
        for child in module.children():
            search(child, isinstance(module, nn.ModuleList))

    search(model, False)
    return found


@contextmanager
def norms_keep_inputs(model: nn.Module) -> Iterator[None]:
    """While open, norms work on copies. Some models (Flux) write into the stream that a norm has kept for its backward."""

    def copied(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if args and isinstance(args[0], Tensor) and args[0].requires_grad and torch.is_grad_enabled():
            return (args[0].clone(), *args[1:])
        return None

    norms = [part for part in model.modules() if "Norm" in type(part).__name__ and next(part.children(), None) is None]
    handles = [norm.register_forward_pre_hook(copied) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """While open, these blocks keep only their inputs and run again in the backward: less memory, about a third slower."""
    before = [(block, block.__dict__.get("forward")) for block in blocks]
    for block in blocks:
        block.forward = _forgetful(block.forward)
    try:
        yield
    finally:
        for block, forward in before:
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _forgetful(forward: Any) -> Any:
    def instead(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        leaves, structure = tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

        def run(*tensors: Tensor) -> Any:
            filled = list(leaves)
            for i, tensor in zip(places, tensors, strict=True):
                filled[i] = tensor.clone()  # some blocks write into their inputs
            again, named = tree_unflatten(filled, structure)
            return forward(*again, **named)

        # The inputs of the first block need no gradient, but what is inside it does: something that asks for one.
        asks = torch.zeros((), requires_grad=True)
        return RunAgain.apply(run, asks, *[leaves[i] for i in places])

    return instead


class RunAgain(torch.autograd.Function):
    """Gradient checkpointing. PyTorch's own would not notice where a model writes over what its backward needs."""

    @staticmethod
    def forward(ctx: Any, run: Any, asks: Tensor, *tensors: Tensor) -> Any:
        ctx.run = run
        ctx.save_for_backward(*tensors)
        with torch.no_grad():
            return run(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        tensors = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            outputs = ctx.run(*tensors)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        pairs = zip(outputs, gradients, strict=True)
        known = [(out, grad) for out, grad in pairs if grad is not None and out.requires_grad]
        torch.autograd.backward([out for out, _ in known], [grad for _, grad in known])
        return None, None, *[tensor.grad for tensor in tensors]


@dataclass(eq=False)
class Caption:
    """An encoded caption, and what the model takes of it for latents of a size (SDXL is told the size, for example)."""

    encoded: dict[str, Any]
    inputs: dict[tuple[int, ...], dict[str, Any]] = field(default_factory=dict)


class HostDenoiser:
    """`objective.Denoiser` over any model of the host, by its own `model_sampling` and `apply_model`."""

    def __init__(self, patcher: Any):
        self.patcher, self.model, self.loaded = patcher, patcher.model, False
        self.device: torch.device = patcher.load_device
        self.sampling = patcher.get_model_object("model_sampling")
        inference = patcher.object_patches.get("manual_cast_dtype", None) or self.model.get_dtype_inference()
        self.dtype = torch.bfloat16 if inference == torch.bfloat16 else torch.float32
        self.flow = isinstance(self.sampling, comfy.model_sampling.CONST)

    def sample_sigmas(self, n: int, generator: torch.Generator) -> Tensor:
        if self.flow:  # then the model's own shift
            times = logit_normal(n, generator)
            return torch.tensor([float(self.sampling.percent_to_sigma(1 - time)) for time in times.tolist()])
        table = self.sampling.sigmas.detach().float().cpu()
        return from_table(table, n, generator).clone()

    def sigmas(self, steps: int) -> Tensor:
        schedule = "simple" if self.flow else "normal"
        return comfy.samplers.calculate_sigmas(self.sampling, schedule, steps).detach().float().cpu().clone()

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return self.sampling.noise_scaling(sigma.reshape(-1, *[1] * (x0.ndim - 1)), noise.clone(), x0.clone())

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return flow_weight(sigma) if self.flow else min_snr_weight(sigma)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Sequence[Caption]) -> Tensor:
        if not self.loaded:  # not before: encoding pictures and captions may have pushed the model out
            self.load()
        inputs = [self.inputs_for(caption, x) for caption in cond]
        first = inputs[0]
        if all(one.keys() == first.keys() and all(first[key].can_concat(one[key]) for key in first) for one in inputs[1:]):
            return self.predict(x, sigma, inputs)
        singles = [self.predict(x[i : i + 1], sigma[i : i + 1], [one]) for i, one in enumerate(inputs)]
        return torch.cat(singles)

    def predict(self, x: Tensor, sigma: Tensor, inputs: Sequence[Mapping[str, Any]]) -> Tensor:
        joined = {key: value.concat([one[key] for one in inputs[1:]]) for key, value in inputs[0].items()}
        # Not the user's attention: some kernels have no backward, and fail silently.
        options = {"optimized_attention_override": _plain_attention, "cond_or_uncond": [0], "sigmas": sigma}
        return self.model.apply_model(x, sigma, **joined, transformer_options=options)

    @torch.no_grad()
    def inputs_for(self, caption: Caption, x: Tensor) -> dict[str, Any]:
        """What the model's own sampler would make of the caption, for one sample."""
        shape = tuple(x.shape[1:])
        if shape not in caption.inputs:
            empty = torch.zeros(1, *shape, device=self.device)
            encoded = comfy.samplers.encode_model_conds(
                self.model.extra_conds,
                [caption.encoded],
                empty,
                self.device,
                "positive",
                latent_image=empty,
                denoise_mask=None,
                seed=0,
                latent_shapes=[empty.shape],
            )
            conds = encoded[0]["model_conds"].items()
            caption.inputs[shape] = {
                key: value.process_cond(batch_size=1, area=None, device=self.device) for key, value in conds
            }
        return caption.inputs[shape]

    def load(self) -> None:
        """Brings the whole model to its device, pushing others out; a model in parts would be cut up between two passes."""
        with torch.inference_mode():  # as everywhere in the host: upstream patches write into inference tensors
            comfy.model_management.load_models_gpu([self.patcher], memory_required=1e20, force_full_load=True)
        if getattr(self.model, "model_lowvram", False):
            raise SeqLoRAError("The model does not fit into this device's memory as a whole; use a smaller or quantised one.")
        self.patcher.pre_run()
        ordinary_weights(self.model)
        self.loaded = True


def _plain_attention(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)


class HostModel:
    """`teaching.Model` over the host's MODEL, CLIP and VAE."""

    def __init__(self, patcher: Any, original: Any, clip: Any, vae: Any):
        self.patcher, self.clip, self.vae = patcher, clip, vae
        self.denoiser = HostDenoiser(patcher)
        base = patcher.model
        self.layout = layout_from_native(key for key in base.state_dict() if key.startswith("diffusion_model."))
        self.fingerprint = fingerprint(original)
        demo = isinstance(base.model_config, DemoConfig)
        self.generic_captions: Sequence[str] = generic_captions() if demo else GENERIC_CAPTIONS
        # Models with distilled guidance are taught as they are without it.
        self._extra = {"guidance": 1.0} if base.model_config.unet_config.get("guidance_embed") else {}
        self._shape: tuple[int, ...] = ()  # of the first picture's latents
        self._prompts: dict[str, Any] = {}  # conditionings of what is drawn

    def layers(self, targets: str) -> dict[str, nn.Module]:
        return choose_layers(self.patcher.model.diffusion_model, targets)

    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        base, latents = self.patcher.model, []
        for picture in pictures:
            with torch.inference_mode():
                encoded = base.process_latent_in(self.vae.encode(picture[None, ..., :3]))
            wanted = base.latent_format.latent_channels
            if encoded.shape[1] != wanted:
                raise SeqLoRAError(
                    f"The VAE makes latents of {encoded.shape[1]} channels, but the model takes {wanted}; "
                    "connect the VAE that belongs to the model."
                )
            latents.append(encoded[0].float().cpu().clone())
        self._shape = tuple(latents[0].shape)
        return latents

    def encode_captions(self, captions: Sequence[str]) -> list[Caption]:
        known: dict[str, Caption] = {}
        for text in dict.fromkeys(captions):
            with torch.inference_mode():
                encoded = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
            options = comfy.sampler_helpers.convert_cond(encoded[:1])[0]
            known[text] = Caption(ordinary(options | self._extra))
        return [known[text] for text in captions]

    def draw(self, prompts: Sequence[str], seed: int) -> list[Tensor]:
        """A picture (h, w, 3) in 0..1 for each prompt by the host's own sampler, all from one noise and as large as the first
        training picture, with whatever is attached to the layers."""
        latent, drawn = torch.zeros(1, *self._shape), []
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            *positive, negative = [self._conditioning(text) for text in (*prompts, "")]
            self.denoiser.load()  # encoding may have pushed it out; and the host's sampler is content with a part of it
            self.denoiser.loaded = False  # as far as we know: sampling and decoding want memory too
            method, schedule = "euler", "simple" if self.denoiser.flow else "normal"
            how = (DRAWING_STEPS, self._guidance(), method, schedule)
            for cond in positive:
                drawn.append(
                    comfy.sample.sample(self.patcher, noise, *how, cond, negative, latent, disable_pbar=True, seed=seed)
                )
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
            self._prompts[text] = [[ordinary(cond), ordinary(options) | extra] for cond, options in encoded]
        return self._prompts[text]

    def _guidance(self) -> float:
        """The usual cfg of this kind of model."""
        if isinstance(self.patcher.model, comfy.model_base.Flux):
            return 1.0
        return 3.0 if self.denoiser.flow else 6.0


def fingerprint(patcher: Any, samples: int = 8) -> str:
    """A hash of a few values of a few weights as they were before any patch, and of the patches."""
    digest = hashlib.sha256()
    weights = patcher.model.diffusion_model.state_dict()
    names = sorted(weights)
    for name in names[:: max(1, len(names) // samples)]:
        backup = patcher.backup.get(f"diffusion_model.{name}")
        digest.update(name.encode() + _few_values(backup.weight if backup else weights[name]))
    for name in sorted(patcher.patches):
        for patch in patcher.patches[name]:
            tensors = [part for part in getattr(patch[1], "weights", patch[1]) if isinstance(part, Tensor)]
            digest.update(f"{name} {patch[0]} {patch[2]}".encode() + b"".join(_few_values(part) for part in tensors))
    return digest.hexdigest()[:16]


def _few_values(weight: Tensor) -> bytes:
    if weight.is_meta:
        return b""
    part = weight.detach()
    part = part.dequantize() if hasattr(part, "dequantize") and type(part) is not Tensor else part
    return part.flatten()[:16].float().cpu().half().numpy().tobytes()


# --- Applying -----------------------------------------------------------------------------------------------------------


def apply_adapter(model: Any, composed: Mapping[str, Pair], strength: float) -> Any:
    """A clone of MODEL with one LoRA patch per weight; what the host does with any LoRA, once.

    Raises SeqLoRAError naming the first layer that the model lacks or whose shape differs.
    """
    keys, shapes = comfy.lora.model_lora_keys_unet(model.model, {}), model.model.state_dict()
    patches: dict[Any, Any] = {}
    for layer, (A, B) in composed.items():
        target = keys.get(layer)
        weight = None if target is None else shapes[target if isinstance(target, str) else target[0]]
        if weight is None:
            raise SeqLoRAError(f"This model has no layer {layer}; use the model that the library was taught on.")
        rows = weight.shape[0] if isinstance(target, str) else target[1][2]
        if (rows, weight[0].numel()) != (A.shape[0], B.shape[0]):
            raise SeqLoRAError(
                f"Layer {layer} is {rows} x {weight[0].numel()} in this model and {A.shape[0]} x {B.shape[0]} in the library; "
                "use the model that the library was taught on."
            )
        patches[target] = comfy.weight_adapter.LoRAAdapter(set(), (A, B.mT.contiguous(), None, None, None, None))
    patched = model.clone()
    missing = patches.keys() - set(patched.add_patches(patches, strength))
    if missing:
        raise SeqLoRAError(f"ComfyUI did not take the adapter of {next(iter(missing))}; update ComfyUI and this node pack.")
    return patched
