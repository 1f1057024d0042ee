"""A model without ComfyUI: its layers, its denoiser, how it draws."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..diffusion.fingerprint import weights_hash
from ..errors import SeqLoRAError
from ..families import family_of
from ..lora.attach import Stack, added
from ..lora.layouts import PREFIX, TRANSFORMER, diffusers_unet_names, native_to_diffusers
from ..lora.targets import choose_layers, layer_shapes, linear_layers
from ..lora.types import LoRAPair, Vectors
from ..training.captions import CONTEXTS, GENERIC_CAPTIONS


class HeadlessModel:
    """A diffusers network with its denoiser: what every model of this backend shares of the core's `SamplingModel`."""

    generic_captions: Sequence[str] = GENERIC_CAPTIONS
    contexts: Sequence[str] = CONTEXTS
    picture_side: int  # pixels; what the model was trained on
    latent_shape: tuple[int, int, int]  # of such a picture
    default_guidance = 3.0
    text_encoders: Sequence[str] = ()
    remark = ""

    def __init__(self, network: nn.Module, denoiser: Any, layout: Mapping[str, Any]):
        self.network, self.denoiser, self.layout = network, denoiser, layout
        self.fingerprint = fingerprint(network)
        self.parts = {"model": weights_hash(network.state_dict().items()), "sampling": _sampling(denoiser)}

    @property
    def family(self) -> str:
        return family_of(self.layout, layer_shapes(self.layers("attention")))

    def layers(self, targets: str) -> dict[str, nn.Module]:
        return self._named(choose_layers(self.network, targets, prefix=""))

    def linear_layers(self) -> dict[str, nn.Module]:
        return self._named(linear_layers(self.network, prefix=""))

    def _named(self, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """By their names in a library: native for a UNet, `transformer.<module path>` for a transformer (see layouts.py)."""
        if self.layout["family"] != "unet":
            return {TRANSFORMER + path: module for path, module in layers.items()}
        native = diffusers_unet_names(self.network.config)  # type: ignore[arg-type]
        return {PREFIX + native[path]: module for path, module in layers.items() if path in native}

    def pieces(self, word: str) -> int:
        return 0

    def own_vectors(self, word: str, count: int) -> Vectors:
        return {}

    @contextmanager
    def using(self, composed: Mapping[str, LoRAPair]) -> Iterator[None]:
        """While open, the model draws with these concepts; the weights are not touched.

        Raises SeqLoRAError for concepts of another model.
        """
        pairs, modules = self._by_path(composed), dict(self.network.named_modules())
        for path, (A, B) in pairs.items():
            module: Any = modules.get(path)
            if module is None or (module.out_features, module.in_features) != (A.shape[0], B.shape[0]):
                raise SeqLoRAError(
                    f"This model has no {A.shape[0]} x {B.shape[0]} layer {path}", "use the model that the library belongs to"
                )
        device, dtype = self.denoiser.device, self.denoiser.dtype
        with added(modules, {path: LoRAPair(A.to(device, dtype), B.to(device, dtype)) for path, (A, B) in pairs.items()}):
            yield

    def _by_path(self, composed: Mapping[str, LoRAPair]) -> dict[str, LoRAPair]:
        try:
            return native_to_diffusers(composed, self.layout)
        except SeqLoRAError as error:
            raise SeqLoRAError(
                f"These concepts were not taught to a {self.layout['family']} model like this one "
                f"(layer {next(iter(composed))})",
                "use the model that the library belongs to",
            ) from error


def _sampling(denoiser: Any) -> str:
    """A hash of how noise levels and predictions are meant."""
    held = sorted(vars(denoiser).items())
    numbers = [(name, value) for name, value in held if isinstance(value, (int, float, str))]
    return weights_hash([(name, value) for name, value in held if isinstance(value, torch.Tensor)], f"{numbers}")


def stacks_of(composed: Mapping[str, LoRAPair], device: torch.device, dtype: torch.dtype) -> list[Stack]:
    """A composed adapter in the form that `attached` takes."""
    return [Stack([name], A[None].float().to(device), B[None].float().to(device), dtype) for name, (A, B) in composed.items()]


def fingerprint(model: nn.Module, samples: int = 8) -> str:
    """A hash of a few values of a few weights: tells fine-tunes of one family apart."""
    digest = hashlib.sha256()
    weights = sorted(model.named_parameters())
    for name, weight in weights[:: max(1, len(weights) // samples)]:
        values = weight.detach().flatten()[:16].float().cpu()
        digest.update(name.encode() + values.half().numpy().tobytes())
    return digest.hexdigest()[:16]
