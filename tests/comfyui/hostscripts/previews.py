"""Teaches a concept beside an earlier one with and without previews, and with previews that fail or are cancelled.

Arguments: a family of tiny.py, or "demo", and an empty folder.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import boot
import comfy.model_management
import comfy.sample
import folder_paths
import numpy as np
import tiny
import torch
from comfy_api.latest._io import Hidden, HiddenHolder
from PIL import Image
from safetensors.torch import load_file
from seqlora_pack.nodes import host
from seqlora_pack.nodes.apply import ApplyComposed
from seqlora_pack.nodes.host import demo_model as demo_host
from seqlora_pack.nodes.library import LibraryHandle
from seqlora_pack.nodes.server import training_status as watching
from seqlora_pack.nodes.server.previews import SEED, Previews
from seqlora_pack.nodes.train import TrainConcept
from seqlora_pack.seqlora.library.store import Library

family, folder = sys.argv[1], Path(sys.argv[2])
TrainConcept.hidden = HiddenHolder.from_dict({Hidden.unique_id: "12:5", Hidden.extra_pnginfo: {"workflow": {"id": "w"}}})
tiny.use_folder(folder)
folder_paths.set_temp_directory(str(folder / "temp"))
if family == "demo":
    with torch.inference_mode():
        models = demo_host.load_demo_model()
    images, rates = torch.stack(tiny.pictures(0, 2, 64)), (2e-2, 6e-3)
else:
    models = tiny.load(family, folder)
    images, rates = torch.stack(tiny.lesson_pictures(models)), tiny.RATES[family]
patcher, clip, vae = models
# One of the families is taught beside the earlier concept, and under gradient checkpointing; the others do what is quicker.
METHOD = "seqlora" if family == "flux" else "lora"


def new_library(name: str) -> LibraryHandle:
    """With one concept, the same in each."""
    place = folder / "seqlora" / name
    if (folder / "seqlora" / "first").exists() and name != "first":
        shutil.copytree(folder / "seqlora" / "first", place)
        return LibraryHandle.of(Library.open(place))
    return LibraryHandle.of(Library.create(place, rank=4, capacity=8, targets="attention"))


def teach(library: LibraryHandle, name: str = "new", **changes) -> dict:
    """What the training told in the end; as the host calls the node, every input a list."""
    given = {
        "model": patcher,
        "clip": clip,
        "vae": vae,
        "library": library,
        "concept_name": name,
        "trigger": f"zobiku{name}",
        "class_word": "thing",
        "steps": 4,
        "batch_size": 2,
        "learning_rate": rates[0],
        "basis_learning_rate": rates[1],
        "seed": 0,
        "method": METHOD,
        "gradient_checkpointing": "on" if family == "flux" else "off",
        "preview_every": 0,
    }
    with torch.inference_mode():
        TrainConcept.execute(images=[images], **{key: [value] for key, value in (given | changes).items()})
    return told()


def told() -> dict:
    (training,) = watching.TRAININGS.values()  # one node
    return training.told()


def tensors(library: LibraryHandle) -> dict:
    now = library.open()
    return load_file(now.path / now.find("new").file)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def state() -> tuple:
    """Everything that goes beyond one node: random numbers, gradients, hooks, modes."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in patcher.model.modules())
    modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), comfy.model_management.in_training)
    return torch.get_rng_state().numpy().tobytes(), modes, hooks, patcher.model.training


def in_use(library: LibraryHandle, prompt: str, concepts: str = "*") -> np.ndarray:
    """What the host's sampler draws with these concepts of the library applied."""
    with torch.inference_mode(), host.training_model(*models, False) as model:
        model.encode_pictures(list(images))
        latent = torch.zeros(1, *model._shape)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(SEED))
        conds, guidance = [model._conditioning(text) for text in (prompt, "")], model._guidance()
        scheduler = "simple" if model.denoiser.flow else "normal"
    with torch.inference_mode():
        applied = ApplyComposed.execute(patcher, library, concepts, 1.0).result[0]
        how = (host.model.DRAWING_STEPS, guidance, "euler", scheduler)
        samples = comfy.sample.sample(applied, noise, *how, *conds, latent, disable_pbar=True, seed=0)
        return vae.decode(samples).reshape(-1, *images.shape[1:])[0].float().numpy()


def saved(preview: Previews, picture: torch.Tensor, step: int, number: int) -> dict[str, str]:
    """Keeps what was drawn, beside the file of it."""
    place = save(preview, picture, step, number)
    with Image.open(folder / "temp" / place["subfolder"] / place["filename"]) as shown:
        assert shown.format == "WEBP" and shown.size == (images.shape[2], images.shape[1])
    drawn[place["filename"]] = picture.numpy()
    return place


def difference(picture: dict, expected: np.ndarray) -> float:
    return float(np.abs(drawn[picture["image"]["filename"]] - expected).max())


drawn: dict[str, np.ndarray] = {}
save, Previews._save = Previews._save, saved
teach(new_library("first"), "earlier")
before, outputs = state(), tiny.outputs(patcher) if family != "demo" else None
alone, watched, broken, stopped = (new_library(name) for name in ("alone", "watched", "broken", "stopped"))
teach(alone)
state_kept = state() == before
shown = teach(watched, preview_every=2, preview_prompt="a red zobikunew thing")
kept = state() == before and (outputs is None or torch.equal(outputs, tiny.outputs(patcher, load_first=False)))

decode, vae.decode = vae.decode, lambda samples: [][0]
noted = teach(broken, preview_every=2)
vae.decode = decode


def interrupt(module, args):
    """At the second model call of the second preview."""
    global calls
    calls += not torch.is_grad_enabled() and told()["phase"] == "training"
    if calls == host.model.DRAWING_STEPS * 2 + 2:
        comfy.model_management.interrupt_current_processing()


calls, handle = 0, patcher.model.diffusion_model.register_forward_pre_hook(interrupt)
try:
    teach(stopped, preview_every=2)
    cancelled = None
except comfy.model_management.InterruptProcessingException:
    cancelled = told()
handle.remove()
left = sorted(stopped.open().names)
resumed = teach(stopped)

last = shown["previews"][-1]["pictures"]
boot.report(
    told={name: shown[name] for name in ("node", "workflow", "phase", "preview_seconds", "note")},
    steps=[preview["step"] for preview in shown["previews"]],
    seconds=sum(preview["seconds"] for preview in shown["previews"]),
    pictures=[(picture["concept"], picture["prompt"], picture["seed"]) for picture in last],
    in_use=[difference(picture, in_use(watched, picture["prompt"])) for picture in last],
    without=difference(last[1], in_use(watched, last[1]["prompt"], "new")),
    same=same(tensors(alone), tensors(watched)),
    state_kept=state_kept,
    kept=kept,
    noted=(noted["phase"], noted["note"], noted["previews"], same(tensors(alone), tensors(broken))),
    cancelled=cancelled and (cancelled["phase"], cancelled["step"], len(cancelled["previews"])),
    left=left,
    resumed=(resumed["note"], same(tensors(alone), tensors(stopped))),
)
