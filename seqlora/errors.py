"""The one exception that means: the user can mend this."""

import re

# A sentence may quote a damaged file or a name that is none: control characters, and halves of characters, which cannot be
# printed at all; ComfyUI's worker would die of them.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]+")
LENGTH = 1000


class SeqLoRAError(ValueError):
    """One sentence for the user: what was found, where, and what to do."""

    def __init__(self, sentence: str):
        plain = _UNPRINTABLE.sub(" ", sentence)
        super().__init__(plain if len(plain) <= LENGTH else f"{plain[: LENGTH // 2]} ... {plain[-LENGTH // 4 :]}")
