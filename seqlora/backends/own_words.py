"""Words with vectors of their own, for text encoders of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..io.text import split_at_words


class OwnWords:
    """A tokenizer in whose texts some words stand for vectors (k, width), and what puts these in.

    The words become tokens that a copy of the tokenizer has and the encoder has not; their places are noted and filled with a
    token that it knows, since encoders find the end of a text by its token.
    """

    def __init__(self, tokenizer: Any, vectors: Mapping[str, Tensor]):
        self.tokenizer, self.vectors, self.known = tokenizer, vectors, len(tokenizer)
        self._copy, self._places = deepcopy(tokenizer), list[tuple[int, int, Tensor]]()
        self._marks = {word: [f"<own{n}x{i}>" for i in range(len(own))] for n, (word, own) in enumerate(vectors.items())}
        self._copy.add_tokens([mark for marks in self._marks.values() for mark in marks])

    def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        given = [text] if isinstance(text, str) else list(text)
        marked = [
            "".join(before + " ".join(["", *self._marks[word], ""]) if word else before for before, word in parts)
            for parts in (split_at_words(one, self.vectors) for one in given)
        ]
        found = self._copy(marked if not isinstance(text, str) else marked[0], *args, **kwargs)
        ids = found["input_ids"]
        if kwargs.get("padding") == "max_length":  # what the encoder is given; other calls only count
            flat = [vector for own in self.vectors.values() for vector in own]
            own = (ids >= self.known).nonzero().tolist()
            self._places = [(row, place, flat[int(ids[row, place]) - self.known]) for row, place in own]
            found["input_ids"] = torch.where(ids >= self.known, torch.zeros_like(ids), ids)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def put_in(self, table: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook of the encoder's table of vectors."""
        if not self._places:
            return output
        rows, places, vectors = zip(*self._places, strict=True)
        where = torch.tensor([rows, places], device=output.device)
        return output.index_put(tuple(where), torch.stack(vectors).to(output))
