"""Pictures of a concept while it is learned, so that one can see when it is good: the user's prompt, and from the same noise
the latest earlier concept of the library, which ought to stay as it is.

They are drawn with the concept and all earlier ones on, as in use. Drawing changes nothing that the training depends on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ...seqlora.errors import SeqLoRAError
from ...seqlora.io.text import literal
from ...seqlora.library.manifest import Record
from ...seqlora.library.store import Library
from ...seqlora.training.progress import Progress
from ...seqlora.training.request import TrainingRequest
from .. import host

SEED = 0
QUALITY = 85


class Previews:
    """The previews of one training, every so many steps (0: none, -1: a quarter of it) and at its end.

    `id` keeps its files apart from others'.
    """

    def __init__(self, id: str, model: host.HostModel, path: Path, lesson: TrainingRequest, every: int, prompt: str):
        self.id, self.model, self.path, self.every = id, model, path, every
        self._own = (lesson.name, prompt.strip() or default_prompt(lesson))
        self._drawn = 0  # the step of the last

    def due(self, progress: Progress, last: bool) -> bool:
        if not self.every or progress.snapshot is None or progress.step == self._drawn:
            return False
        every = self.every if self.every > 0 else max(1, progress.steps // 4)
        return last or progress.step == progress.steps or progress.step // every > self._drawn // every

    def draw(self, progress: Progress) -> dict[str, Any]:
        """Draws what the training looks like now: {"step", "seconds", "pictures"}, see watching.py. Raises SeqLoRAError where
        that cannot be done; from then on nothing is due."""
        began = time.monotonic()
        self._drawn = progress.step
        try:
            subjects = [self._own]
            library = Library.open(self.path)
            for record in library.concepts[-1:]:  # it cannot change: the training is its one writer
                subjects.append((record.name, default_prompt(record)))
            triggers = {**library.triggers(library.names[-1:]), **progress.snapshot.triggers()}
            with progress.snapshot.all_active():
                drawn = self.model.draw([prompt for _, prompt in subjects], SEED, triggers)
            pictures = [
                {"concept": name, "prompt": prompt, "seed": SEED, "image": self._save(picture, progress.step, number)}
                for number, ((name, prompt), picture) in enumerate(zip(subjects, drawn, strict=True))
            ]
        except Exception as error:  # not the host's interrupt, which is none
            self.every = 0
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise SeqLoRAError(f"The preview could not be drawn ({reason})", "the training goes on without") from error
        return {"step": progress.step, "seconds": round(time.monotonic() - began, 3), "pictures": pictures}

    def _save(self, picture: Tensor, step: int, number: int) -> dict[str, str]:
        folder, place = host.preview_folder()
        name = f"{self.id}_{step:06}_{number}.webp"
        Image.fromarray((picture.clamp(0, 1) * 255).round().byte().numpy()).save(folder / name, quality=QUALITY)
        return {"filename": name} | place


def default_prompt(concept: TrainingRequest | Record) -> str:
    return literal(f"a photo of {concept.subject}")
