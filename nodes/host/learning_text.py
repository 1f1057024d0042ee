"""A text encoder through which a trigger's vectors are learned.

Of those encoders that take vectors copies stay on their device during the training, beside the model: they are small (CLIP-L,
CLIP-G). What larger ones beside them (T5) make of a text depends on no vectors; it is remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...seqlora.errors import SeqLoRAError
from ...seqlora.lora.types import Triggers, Vectors
from .gradients import clone_norm_inputs, ordinary
from .own_words import encoders_of, own_tokenizer


class LearningText:
    """The user's CLIP for texts whose triggers have vectors, with a gradient in what they are encoded to.

    Make and use it outside of inference mode. `make_room` is called before the CLIP itself is brought to its device.
    Raises SeqLoRAError where its loader cannot make a copy.
    """

    def __init__(self, clip: Any, make_room: Callable[[], None]):
        self._user, self._make_room = _without_dynamic_vram(clip), make_room
        self._load()  # whatever is patched onto it is in its weights then
        self.encoders = encoders_of(self._user)
        self.clip = copy(self._user)
        self.clip.cond_stage_model = self._copied(self._user.cond_stage_model)
        self.clip.load_model = lambda tokens=None: self.clip.patcher  # it is where it should be
        for encoder in self._copies():
            encoder.to(self.clip.patcher.load_device)

    def encode(self, text: str, triggers: Triggers) -> Any:
        """As `encode_from_tokens_scheduled` of a CLIP does, with what stands for the triggers."""
        reads = copy(self.clip)
        reads.tokenizer = own_tokenizer(self.clip, triggers)
        with ExitStack() as hooks:
            for encoder in self._copies() if torch.is_grad_enabled() else ():
                hooks.enter_context(clone_norm_inputs(encoder))
            return reads.encode_from_tokens_scheduled(reads.tokenize(text))

    @torch.no_grad()
    def own_vectors(self, word: str, count: int) -> Vectors:
        """Those of the word's tokens, spread over `count`."""
        found = {}
        for name, place in self.encoders.items():
            words = getattr(self.clip.tokenizer, place)
            ids = words.tokenizer(word)["input_ids"]
            ids = ids[words.tokens_start : len(ids) - int(words.tokenizer_adds_end_token)]
            embedded = getattr(self.clip.cond_stage_model, place).process_tokens([ids], self.clip.patcher.load_device)[0][0]
            found[name] = embedded[[i * len(ids) // count for i in range(count)]].float().cpu()
        return found

    def _copies(self) -> list[Any]:
        return [getattr(self.clip.cond_stage_model, place) for place in self.encoders.values()]

    def _load(self) -> None:
        self._make_room()
        with torch.inference_mode():  # as everywhere in the host
            self._user.load_model()

    def _copied(self, model: nn.Module) -> nn.Module:
        """A copy that shares the memory of its weights, as ordinary tensors."""
        known: dict[int, Any] = {}
        for name, part in model.named_children():
            if name not in self.encoders.values() and hasattr(part, "encode"):
                known[id(part)] = _remembering(part, self._load)
        for encoder in (getattr(model, place) for place in self.encoders.values()):
            for weight in encoder.parameters():
                known[id(weight)] = nn.Parameter(ordinary(weight.data), requires_grad=False)
            for buffer in encoder.buffers():
                known[id(buffer)] = ordinary(buffer)
        return deepcopy(model, known)


def _without_dynamic_vram(clip: Any) -> Any:
    """A clone whose weights stay where they are between a forward and its backward."""
    try:
        clip = clip.clone(disable_dynamic=True)
    except (RuntimeError, TypeError) as error:
        raise SeqLoRAError(
            "This text encoder's loader cannot make the copy that learning a trigger needs under dynamic VRAM",
            "set trigger_vectors to 0, or start ComfyUI with --disable-dynamic-vram",
        ) from error
    clip.cond_stage_model = clip.patcher.model
    return clip


def _remembering(encoder: Any, load: Callable[[], None]) -> Any:
    """The encoder, which reads every text once."""
    remembered, known = copy(encoder), dict[str, Any]()
    read = remembered.encode

    def encode(tokens: Any) -> Any:
        text = repr(tokens)
        if text not in known:
            load()
            with torch.inference_mode():
                found = read(tokens)
            known[text] = tree_map_only(Tensor, lambda part: part.cpu().clone(), found)
        return tree_map_only(Tensor, Tensor.clone, known[text])  # the host writes into it

    remembered.encode = encode
    return remembered
