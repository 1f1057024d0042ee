"""Where in a picture concepts belong, and which of a model's tokens that concerns.

A region has a mask and a text of its own, which is encoded on its own and joined behind the prompt's. From then on lengths say
what a token is:

* a picture's token has the concepts of the regions that it lies in, and sees the prompt and the texts of these regions;
* a text's token has the concepts of its own region, and sees its own text, the prompt and its part of the picture;
* a concept that no region names is everywhere.

Everything happens in one pass of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SeqLoRAError

SIDE = 512  # of a box drawn as a mask


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the picture: what is there, in the words of a prompt, and a mask (h, w) in 0..1 of any size."""

    text: str
    mask: Tensor


def box_mask(x: float, y: float, width: float, height: float) -> Tensor:
    """A box as a mask; its upper left corner and its sides as shares of the picture's.

    Raises SeqLoRAError for a box of which nothing lies in the picture.
    """
    left, top, right, bottom = (round(SIDE * min(1.0, max(0.0, at))) for at in (x, y, x + width, y + height))
    if right <= left or bottom <= top:
        raise SeqLoRAError(
            f"The box at {x:g}, {y:g} of {width:g} x {height:g} holds nothing of the picture",
            "x, y, width and height are shares of the picture's sides, from 0 to 1",
        )
    mask = torch.zeros(SIDE, SIDE)
    mask[top:bottom, left:right] = 1.0
    return mask


@dataclass(frozen=True, eq=False)
class RegionPlan:
    """What the regions of a prompt are to a model, whatever the size of the picture."""

    masks: Sequence[Tensor]  # one a region
    lengths: Sequence[int]  # tokens of the prompt, then of each region's text, in the order in which they are joined
    members: Sequence[Sequence[int]]  # of each concept: the regions that name it; none: it is everywhere

    def shares_of_mask(self, height: int, width: int) -> Tensor:
        """(regions, height * width): how much of each region lies in each cell of a grid."""
        return torch.cat([F.interpolate(m[None, None].float(), (height, width), mode="area").flatten(1) for m in self.masks])


class Tokens:
    """A plan for pictures and a text of given lengths: what each token has and sees.

    `pictures` says which lengths are pictures, as length -> (frames, height, width); `joint` whether the model also puts text
    and picture in one sequence, the text first. A text of another length than the plan's is somebody else's, such as a negative
    prompt from another node: it has no region's concepts, and everything sees it.
    Raises SeqLoRAError where lengths cannot tell text and picture apart.
    """

    def __init__(self, plan: RegionPlan, text: int, pictures: Mapping[int, tuple[int, int, int]], joint: bool):
        self.plan, self.text, self.pictures, self.joint = plan, text, dict(pictures), joint
        if text in self.pictures or (joint and any(text + picture in self.pictures for picture in self.pictures)):
            raise SeqLoRAError(
                f"Regions cannot tell text and picture apart: the text has {text} tokens, as many as the picture",
                "make the picture a little larger or smaller",
            )
        repeats, rest = divmod(text, sum(plan.lengths))
        once = torch.cat([torch.full((length,), i) for i, length in enumerate(plan.lengths)])
        self.owner = None if rest else once.repeat(repeats)  # of each text token: 0 the prompt, i + 1 region i

    def shares(self, tokens: int) -> Tensor:
        """(tokens, concepts): how much of each concept each token has. Raises SeqLoRAError for a length that is neither."""
        if tokens == self.text:
            return self._of_text()
        if tokens in self.pictures:
            return self._of_picture(tokens)
        if self.joint and tokens - self.text in self.pictures:
            return torch.cat([self._of_text(), self._of_picture(tokens - self.text)])
        raise SeqLoRAError(
            f"Regions cannot tell what {tokens} tokens of this model are: the picture has "
            f"{' or '.join(map(str, self.pictures))}, the text {self.text}",
            "leave regions out, or whatever adds tokens, such as a reference picture",
        )

    def _of_text(self) -> Tensor:
        owner = torch.zeros(self.text, dtype=torch.long) if self.owner is None else self.owner
        columns = [
            torch.isin(owner, torch.tensor([i + 1 for i in regions])).float() if regions else torch.ones(self.text)
            for regions in self.plan.members
        ]
        return torch.stack(columns, 1)

    def _of_picture(self, tokens: int) -> Tensor:
        masks = self._masks(tokens)
        columns = [masks[list(regions)].amax(0) if regions else torch.ones(tokens) for regions in self.plan.members]
        return torch.stack(columns, 1)

    def _masks(self, tokens: int) -> Tensor:
        frames, height, width = self.pictures[tokens]
        return self.plan.shares_of_mask(height, width).repeat(1, frames)

    def groups(self, queries: int, keys: int) -> list[tuple[Tensor, Tensor]] | None:
        """Who sees what, as (rows, columns) that share out all queries. None: everyone sees everything."""
        if self.owner is None:
            return None
        if queries in self.pictures and keys == self.text:
            return self._picture_groups(queries, torch.empty(0, dtype=torch.long), 0)
        picture = queries - self.text
        if not self.joint or keys != queries or picture not in self.pictures:
            return None
        everywhere = torch.arange(self.text, queries)
        return self._picture_groups(picture, everywhere, self.text) + self._text_groups(picture)

    def _picture_groups(self, tokens: int, also: Tensor, first: int) -> list[tuple[Tensor, Tensor]]:
        """Tokens of the picture that lie in the same regions see the prompt, these regions' texts, and `also`."""
        patterns, which = torch.unique(self._inside(tokens), dim=1, return_inverse=True)
        groups = []
        for i, pattern in enumerate(patterns.unbind(1)):
            seen = torch.cat([torch.tensor([True]), pattern])[self._owner()]
            groups.append(((which == i).nonzero()[:, 0] + first, torch.cat([seen.nonzero()[:, 0], also])))
        return groups

    def _text_groups(self, tokens: int) -> list[tuple[Tensor, Tensor]]:
        """The prompt sees itself and the whole picture; a region's text sees itself, the prompt and its part of the picture."""
        owner, inside = self._owner(), self._inside(tokens)
        groups = []
        for i in range(len(self.plan.lengths)):
            picture = torch.ones(tokens, dtype=torch.bool) if i == 0 else inside[i - 1]
            seen = torch.cat([(owner == 0) | (owner == i), picture])
            groups.append(((owner == i).nonzero()[:, 0], seen.nonzero()[:, 0]))
        return groups

    def _owner(self) -> Tensor:
        assert self.owner is not None
        return self.owner

    def _inside(self, tokens: int) -> Tensor:
        """(regions, tokens) whether a token of the picture lies in a region; every region has one at least."""
        masks = self._masks(tokens)
        return masks >= masks.amax(1, keepdim=True).clamp(max=0.5)
