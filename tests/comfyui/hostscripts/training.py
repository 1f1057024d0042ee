"""Trains a tiny model of a family as the node does, and reports what it did to loss, files and model.

Arguments: the family and an empty folder.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import boot
import comfy.model_management
import tiny
import torch
from safetensors.torch import load_file
from seqlora_pack.nodes import host
from seqlora_pack.seqlora.backends.model import stacks_of
from seqlora_pack.seqlora.diffusion.batches import Batches, Examples, denoising_loss
from seqlora_pack.seqlora.lora.attach import attached
from seqlora_pack.seqlora.lora.targets import repeated_blocks


def fixed_loss(models, library) -> tuple[float, float]:
    """Loss on the training pictures with fixed noise: of the bare model and with the concept."""
    with host.training_model(*models, False) as model, torch.no_grad():
        pictures = tiny.lesson_pictures(models)
        captions = model.encode_captions(["a photo of zobiku thing"] * len(pictures))
        examples = Examples(model.encode_pictures(pictures), captions)
        concept = stacks_of(library.load("thing"), model.denoiser.device, model.denoiser.dtype)
        layers = model.layers(library.targets)

        def mean_loss() -> float:
            batches = Batches(examples, model.denoiser, 4, torch.Generator().manual_seed(99))
            return sum(float(denoising_loss(model.denoiser, batches.next())) for _ in range(8)) / 8

        bare = mean_loss()
        with attached(layers, concept):
            return bare, mean_loss()


def library_like(first, name: str):
    """A new library that need not measure the same model's moments once more."""
    library = tiny.new_library(folder, name)
    shutil.copytree(first.path / "moments", library.path / "moments", ignore=shutil.ignore_patterns("0*"))
    return library


def tensors(library, name: str = "thing") -> dict:
    return load_file(library.path / library.find(name).file)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def hooks_left(patcher) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in module.__dict__)
        for module in patcher.model.modules()
    )


family, folder = sys.argv[1], Path(sys.argv[2])
models = tiny.load(family, folder)
patcher = models[0]
before = tiny.outputs(patcher)
settings = tiny.settings_for(family)
step_times = []
began = time.monotonic()
taught = tiny.train(
    models,
    tiny.new_library(folder, "first"),
    settings,
    on_step=lambda p: p.phase == "training" and step_times.append(time.monotonic()),
)
seconds = time.monotonic() - began
after = tiny.outputs(patcher, load_first=False)
bare, with_concept = fixed_loss(models, taught.library)

short = settings.with_(steps=4)
if family == "sd15":  # its layers are wide: leave out what is slow on a CPU, and tested on the others
    short = short.with_(basis_init="random", interference_weight=0.0)
plain, again = (tensors(tiny.train(models, library_like(taught.library, name), short).library) for name in ("plain", "again"))
thrifty = tensors(tiny.train(models, library_like(taught.library, "thrifty"), short, checkpointing=True).library)


def cancel_at(step: int):
    def cancel(progress):
        if progress.phase == "training" and progress.step == step:
            comfy.model_management.interrupt_current_processing()

    return cancel


cancelled = library_like(taught.library, "cancelled")
files_before = sorted(path.name for path in cancelled.path.rglob("*"))
try:
    tiny.train(models, cancelled, short, checkpointing=True, on_step=cancel_at(2))
    stopped = False
except comfy.model_management.InterruptProcessingException:
    stopped = True
cancel_outputs_kept = torch.equal(before, tiny.outputs(patcher, load_first=False))
cancel_new_files = {path.name for path in cancelled.path.rglob("*") if "checkpoints" not in path.parts}
resumed = tiny.train(models, cancelled, short, checkpointing=True)
reused = tiny.train(models, taught.library, settings)
second = tiny.train(models, taught.library, short, name="other")

boot.report(
    bare=bare,
    with_concept=with_concept,
    seconds=seconds,
    seconds_per_step=(step_times[-1] - step_times[0]) / (len(step_times) - 1),
    layers=len(taught.library.base.layers),
    layout=dict(taught.library.base.layout),
    reproducible=same(plain, again),
    outputs_kept=torch.equal(before, after),
    checkpointed_blocks=len(repeated_blocks(patcher.model.diffusion_model)),
    checkpointing_error=max(float((plain[key] - thrifty[key]).abs().max()) for key in plain),
    cancel_stopped=stopped,
    cancel_outputs_kept=cancel_outputs_kept,
    cancel_new_files=sorted(cancel_new_files - {*files_before, ".lock"}),
    resumed_at=resumed.report.resumed_at,
    resumed_same=same(thrifty, tensors(resumed.library)),
    hooks_left=hooks_left(patcher),
    in_training=comfy.model_management.in_training,
    reused=reused.reused,
    concepts=second.library.names,
    overlap=second.report.largest_overlap_entry,
)
