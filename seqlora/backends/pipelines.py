"""What the pipelines of all families share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.belonging import text_fits
from ..diffusion.fingerprint import weights_hash
from ..diffusion.model import NO_TRIGGERS
from ..errors import SeqLoRAError
from ..lora.types import Triggers, Vectors
from .denoisers import Predict
from .model import HeadlessModel
from .own_words import OwnWords

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class PipelineModel(HeadlessModel):
    """What the families share. A conditioning is a dict of tensors of one caption, without a batch dimension."""

    needs: tuple[str, ...]  # components without which nothing works; the network first
    _learnable: Mapping[str, str] = {}  # text encoders that take vectors of a concept's own: their name in files -> in the pipe
    patch = 1  # side of the squares of latents that the network takes as one

    def __init__(self, pipe: Any, device: torch.device, dtype: torch.dtype):
        self.pipe, self.device, self.dtype = pipe, device, dtype
        self.text_encoders = list(self._learnable)
        network = getattr(pipe, self.needs[0])
        channels = pipe.vae.config.latent_channels
        if network.config.in_channels != channels * self._packed:
            raise SeqLoRAError(
                f"The {self.needs[0]} takes {network.config.in_channels} channels, but the autoencoder gives {channels}: "
                "this is an inpainting or control model",
                "use a text-to-image one",
            )
        network.eval().requires_grad_(False).to(device)
        if device.type == "cuda":
            network.enable_gradient_checkpointing()

        def predict(x: Tensor, timestep: Tensor, cond: Sequence[Mapping[str, Tensor]]) -> Tensor:
            together = {key: torch.stack([one[key] for one in cond]).to(device, dtype) for key in cond[0]}
            if self._tried:
                return self._predict(x, timestep, together)
            with text_fits(network, cond[0]["text"], cond[0].get("pooled"), "give a pipeline whose parts belong together"):
                predicted = self._predict(x, timestep, together)
            self._tried = True
            return predicted

        self._squeeze = pipe.vae_scale_factor  # pixels per latent, a side
        latent_side = self._default_latent_side(network)
        self.picture_side = latent_side * self._squeeze
        self.latent_shape = (channels, latent_side, latent_side)
        super().__init__(network, self._denoiser(predict), self._layout(network))
        for what, names in (("text encoder", ENCODERS), ("VAE", ("vae",))):
            held = [getattr(self.pipe, name, None) for name in names]
            tensors = (item for part in held if part is not None for item in part.state_dict().items())
            self.parts[what] = weights_hash(tensors, self._words() if what == "text encoder" else "")

    _packed = 1  # latents in one channel of the network's input
    _tried = False  # whether a first pass has shown that text and network belong together

    def _words(self) -> str:
        """How the tokenizers take a text apart, as far as that is not in the text encoders' weights."""
        return f"{[(type(one).__name__, len(one), one.model_max_length) for one in self._tokenizers()]}"

    def _tokenizers(self) -> list[Any]:
        held = [getattr(self.pipe, name, None) for name in (*TOKENIZERS.values(), "tokenizer_3")]
        return [one for one in held if one is not None]

    def pieces(self, word: str) -> int:
        return max(len(one(word, add_special_tokens=False).input_ids) for one in self._tokenizers())

    def _default_latent_side(self, network: Any) -> int:
        size = network.config.sample_size
        return size if isinstance(size, int) else max(size)

    def _layout(self, network: Any) -> dict[str, Any]:
        raise NotImplementedError

    def _denoiser(self, predict: Predict) -> Any:
        raise NotImplementedError

    def _predict(self, x: Tensor, timestep: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The network's own output for latents (n, c, h, w)."""
        raise NotImplementedError

    def _encode(self, caption: str) -> dict[str, Tensor]:
        """Tensors with a batch dimension of one."""
        raise NotImplementedError

    @contextmanager
    def _on_device(self, *parts: nn.Module | None) -> Iterator[None]:
        """These parts on the device and the network off it, so that what fits alone is enough."""
        if self.device.type == "cpu":
            yield
            return
        modules = [part for part in parts if part is not None]
        self.network.to("cpu")
        try:
            for module in modules:
                module.to(self.device)
            yield
        finally:
            for module in modules:
                module.to("cpu")
            self.network.to(self.device)

    @torch.no_grad()
    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Pictures (h, w, 3) in 0..1 -> latents (c, h', w') on the CPU; the middle that whole patches cover."""
        with self._on_device(self.pipe.vae):
            return [self._encode_picture(picture) for picture in pictures]

    def _encode_picture(self, picture: Tensor) -> Tensor:
        unit = self._squeeze * self.patch
        height, width = (side // unit * unit for side in picture.shape[:2])
        top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
        pixels = picture[top : top + height, left : left + width].movedim(-1, 0)[None] * 2 - 1
        vae = self.pipe.vae
        latent = vae.encode(pixels.to(self.device, self.dtype)).latent_dist.mode().float().cpu()[0]
        return (latent - (vae.config.shift_factor or 0)) * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) -> pictures (n, H, W, 3) in 0..1, on the CPU; one at a time, for memory."""
        vae = self.pipe.vae
        latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
        with self._on_device(vae):
            pictures = [vae.decode(one[None].to(self.device, self.dtype)).sample.float().cpu()[0] for one in latents]
        return (torch.stack(pictures).movedim(1, -1) / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def own_vectors(self, word: str, count: int) -> Vectors:
        found = {}
        for name, place in self._learnable.items():
            tokenizer, encoder = getattr(self.pipe, TOKENIZERS[place]), getattr(self.pipe, place)
            ids = tokenizer(word, add_special_tokens=False).input_ids
            table = encoder.get_input_embeddings().weight
            found[name] = table[[ids[i * len(ids) // count] for i in range(count)]].float().cpu()
        return found

    @contextmanager
    def _meaning(self, triggers: Triggers) -> Iterator[None]:
        """While open, the pipeline's CLIP text encoders read these vectors where a trigger stands."""
        with ExitStack() as undo:
            for name, place in self._learnable.items() if triggers else ():
                own = {trigger: vectors[name] for trigger, vectors in triggers.items() if name in vectors}
                reader = OwnWords(getattr(self.pipe, TOKENIZERS[place]), own)
                undo.callback(self.pipe.__dict__.update, {TOKENIZERS[place]: reader.tokenizer})
                self.pipe.__dict__[TOKENIZERS[place]] = reader  # not by its setter, which would note it in its configuration
                table = getattr(self.pipe, place).get_input_embeddings()
                undo.callback(table.register_forward_hook(reader.put_in).remove)
            yield

    def encode_captions(self, captions: Sequence[str], triggers: Triggers = NO_TRIGGERS) -> list[dict[str, Tensor]]:
        encoders = [getattr(self.pipe, name, None) for name in ENCODERS]
        learning = torch.is_grad_enabled() and any(v.requires_grad for own in triggers.values() for v in own.values())
        with ExitStack() as room:
            if learning:  # beside the network, at every step
                for place in self._learnable.values():
                    getattr(self.pipe, place).requires_grad_(False).to(self.device)
            else:
                room.enter_context(torch.no_grad())
                room.enter_context(self._on_device(*encoders))
            room.enter_context(self._meaning(triggers))
            by_caption = {c: {key: value[0] for key, value in self._encode(c).items()} for c in dict.fromkeys(captions)}
        return [by_caption[caption] for caption in captions]
