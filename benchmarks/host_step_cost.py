"""What a step of SeqLoRA costs beside one of plain LoRA, in ComfyUI on the SD1.5-class model. Arguments: a folder
and the number of rounds to time."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "comfyui" / "hostscripts"))

import boot
import tiny
import torch
from seqlora_pack.nodes import host

sys.path.append(str(boot.PACK))  # last: the host has a module `nodes` too

from benchmarks.step_cost import compare_after  # noqa: E402
from seqlora.diffusion.batches import Examples  # noqa: E402

torch.set_num_threads(1)
folder = Path(sys.argv[1])
models = tiny.load("sd15", folder)
with host.training_model(*models, False) as model:
    pictures = tiny.lesson_pictures(models)
    examples = Examples(model.encode_pictures(pictures), model.encode_captions(["a photo of zobiku thing"] * len(pictures)))
    uncond, *generic = model.encode_captions(["", "a dog", "a house", "a tree"])
    result = compare_after(
        model.denoiser,
        model.layers("attention and mlp"),
        examples,
        examples.latents[0].shape,
        generic,
        uncond,
        batch_size=4,
        rounds=int(sys.argv[2]),
    )
boot.report(**result)
