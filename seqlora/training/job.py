"""One training, as it is asked for: what makes it the same as an earlier one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ..diffusion.model import Model
from ..errors import SeqLoRAError
from ..library.store import Library, request_hash
from ..library.writer import LibraryWriter
from ..lora.targets import layer_shapes
from ..settings import Settings
from .adopt import Adoption
from .checkpoint import Checkpoint
from .request import TrainingRequest


@dataclass(frozen=True)
class Job:
    """One training, once it is clear that it must be done."""

    writer: LibraryWriter[Library]
    replaces: str | None  # the concept of which this is a new version
    request: TrainingRequest
    request_hash: str
    parts: Mapping[str, str]  # see `request_parts`
    settings: Settings
    automatic: Sequence[str]  # names of settings that were left to the model
    model: Model
    layers: Mapping[str, nn.Module]
    checkpoint: Checkpoint
    note: str = ""  # what there is to say of it
    left_out: int = 0  # layers that never run on such inputs or reach no output
    adoption: Adoption | None = None  # of what was made elsewhere, in the place of pictures

    @property
    def library(self) -> Library:
        return self.writer.library

    @property
    def shapes(self) -> dict[str, list[int]]:
        return {name: list(shape) for name, shape in layer_shapes(self.layers).items()}

    @property
    def others(self) -> Library:
        """The library as it will be beside the new concept."""
        return self.library.without(self.replaces) if self.replaces else self.library


def check_name(job: Job) -> None:
    """Raises SeqLoRAError for a name that is taken; says in what the concept of that name was asked for otherwise."""
    try:
        job.others.free_name(job.request.name)
    except SeqLoRAError as error:
        taken = next((record for record in job.others.concepts if record.name == job.request.name), None)
        before = dict(part.split("=", 1) for part in (taken.metrics.get("made_with", []) if taken else []))
        other = [name for name, value in job.parts.items() if name in before and before[name] != value]
        if not other:
            raise
        raise SeqLoRAError(
            f"{error.problem}, taught with another {' and '.join(other)}",
            "choose another name, or turn on replace to teach it anew",
        ) from error


def binding_of(job: Job, request_id: str) -> str:
    """A hash of what a checkpoint depends on: the request, the concepts beside it (their files change with a name, what was
    taught anew has another time), the layers."""
    beside = [(record.id, record.created, record.request, record.moments_sha256) for record in job.others.concepts]
    return request_hash(request_id, beside, job.shapes)
