"""The one exception that means: the user can mend this."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

# A sentence may quote a damaged file or a name that is none: control characters, and halves of characters, which cannot be
# printed at all; ComfyUI's worker would die of them.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]+")
LENGTH = 1000  # characters of the sentence


class SeqLoRAError(ValueError):
    """What was found and where, and what to do about it; as text one sentence, "problem; remedy.", that can be printed."""

    def __init__(self, problem: str, remedy: str = ""):
        self.problem, self.remedy = (_UNPRINTABLE.sub(" ", part) for part in (problem, remedy))
        super().__init__(self.problem, self.remedy)

    def __str__(self) -> str:
        sentence = "; ".join(filter(None, (self.problem, self.remedy)))
        sentence += "" if sentence.endswith((".", "?")) else "."
        return sentence if len(sentence) <= LENGTH else f"{sentence[: LENGTH // 2]} ... {sentence[-LENGTH // 4 :]}"

    def also(self, more: str) -> SeqLoRAError:
        """The same with one more thing to know or do."""
        return SeqLoRAError(self.problem, "; ".join(filter(None, (self.remedy, more))))


@contextmanager
def remedied(remedy: str) -> Iterator[None]:
    """Whatever is found wrong inside, this is what to do: who asked for a file knows better than who reads it."""
    try:
        yield
    except SeqLoRAError as error:
        raise SeqLoRAError(error.problem, remedy) from error
