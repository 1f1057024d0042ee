"""Applies and exports a library taught on a tiny model, and compares with the host's own LoRA loader.

Arguments: the family and an empty folder.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import boot
import comfy.lora
import comfy.model_management
import folder_paths
import tiny
import torch
from checkpoints import sdxl_without_weights
from comfy_api.latest._io import HiddenHolder
from safetensors import safe_open
from seqlora_pack.nodes import host
from seqlora_pack.nodes.apply import ApplyComposed
from seqlora_pack.nodes.export import ExportLoRA
from seqlora_pack.nodes.library import CreateLibrary, LibraryHandle, LoadLibrary, state_of
from seqlora_pack.seqlora.errors import SeqLoRAError
from seqlora_pack.seqlora.lora.targets import TARGETS, choose_layers, layer_shapes
from torch import Tensor

from nodes import LoraLoaderModelOnly

for node in (ApplyComposed, CreateLibrary, ExportLoRA, LoadLibrary):
    node.hidden = HiddenHolder.from_dict({})  # the host sets it for a node that it runs

family, folder = sys.argv[1], Path(sys.argv[2])
tiny.use_folder(folder)
folder_paths.add_model_folder_path("loras", str(folder / "output" / "loras"))
folder_paths.add_model_folder_path("loras", str(folder / "seqlora" / "lib" / "concepts"))


def difference(found: Tensor, expected: Tensor) -> float:
    """As a share of what the concepts change."""
    return float((found - expected).norm() / (expected - bare).norm())


def loaded_by_host(name: str) -> Tensor:
    (patched,) = LoraLoaderModelOnly().load_lora_model_only(patcher, name, 1.0)
    return tiny.outputs(patched)


def applied(text: str, strength: float = 1.0) -> Tensor:
    return tiny.outputs(ApplyComposed.execute(patcher, library, text, strength).result[0])


def refused(action) -> str:
    try:
        action()
    except SeqLoRAError as error:
        return str(error)
    return ""


def remarks() -> dict[str, list[str]]:
    """What is said where the library is applied to its model, to that with another LoRA on it, and to a fine-tune."""
    lines: dict[str, list[str]] = {}

    def said(what: str, model) -> None:
        handler = logging.Handler()
        handler.emit = lambda record: lines[what].append(record.getMessage())
        logging.getLogger("seqlora").addHandler(handler)
        lines[what] = []
        ApplyComposed.execute(model, library, "*", 1.0)
        logging.getLogger("seqlora").removeHandler(handler)

    said("own", patcher)
    said("with a LoRA", ApplyComposed.execute(patcher, library, "one", 1.0).result[0])
    other = tiny.load(family, folder)[0]
    for weight in other.model.diffusion_model.parameters():
        weight.mul_(1.01)
    said("fine-tune", other)
    return lines


def sdxl_layers() -> tuple[int, list[str]]:
    """How many layers of the real SDXL are taught, and those that the host would not find by our names or in our shape."""
    model = sdxl_without_weights()
    names, weights = comfy.lora.model_lora_keys_unet(model, {}), model.state_dict()
    shapes = layer_shapes(choose_layers(model.diffusion_model, "attention and mlp"))
    return len(shapes), [name for name in shapes if name not in names or tuple(weights[names[name]].shape) != shapes[name]]


with torch.inference_mode():
    models = tiny.load(family, folder)
    patcher = models[0]
    created = CreateLibrary.execute("lib", 4, 8, "attention and mlp").result[0]
    first_digest = state_of("lib")
    settings = tiny.settings_for(family, steps=6, basis_init="random", interference_weight=0.0)
    for name in ("one", "three"):
        tiny.train(models, created.open(), settings, name=name)
    library, triggers = LoadLibrary.execute("lib").result
    bare = tiny.outputs(patcher)
    weights = {key: value.clone() for key, value in patcher.model.state_dict().items()}

    alone = applied("one")
    record = library.open().find("one")
    by_host = loaded_by_host(Path(record.file).name)
    both = applied("*\nthree: 0.5", 0.8)

    # The weights while both are on, against the sum in float64.
    errors = []
    concepts = [(library.open().load("one"), 0.8), (library.open().load("three"), 0.4)]
    for layer in concepts[0][0]:
        key = f"{layer}.weight"
        delta = sum(s * c[layer].up.double() @ c[layer].basis.double().mT for c, s in concepts)
        now = patcher.model.state_dict()[key].double()
        expected = weights[key].double() + delta
        errors.append(float((now - expected).norm() / expected.norm()))

    again = tiny.outputs(patcher)
    kept = all(torch.equal(weights[key], value) for key, value in patcher.model.state_dict().items())

    exports, header = {}, {}
    expected = applied("*")
    for kind in ("comfyui", "kohya", "diffusers"):
        for dtype in ("fp32", "fp16"):
            name = ExportLoRA.execute(library, "*", f"{family}/all", kind, dtype).result[0]
            exports[f"{kind} {dtype}"] = difference(loaded_by_host(name), expected)
            with safe_open(folder / "output" / "loras" / name, "pt") as file:
                header = file.metadata()
    boot.report(
        changed=float((alone - bare).norm() / bare.norm()),
        against_host=difference(by_host, alone),
        both_differ=difference(both, alone),
        weights_error=max(errors),
        outputs_kept=torch.equal(bare, again),
        weights_kept=kept,
        exports=exports,
        header=header,
        last_export=name,
        triggers=triggers,
        digest_follows=first_digest != state_of("lib") and state_of("lib").startswith(library.digest),
        nothing_selected=ApplyComposed.execute(patcher, library, "one: 0", 1.0).result[0] is patcher,
        refused={
            "unknown concept": refused(lambda: applied("two")),
            "outside": refused(lambda: ExportLoRA.execute(library, "*", "../../out", "comfyui", "fp16")),
            "library path": refused(lambda: LoadLibrary.execute("../lib")),
            "tampered handle": refused(lambda: LibraryHandle("../lib", "/", "").open()),
            "other rank": refused(lambda: CreateLibrary.execute("lib", 8, 8, "attention and mlp")),
            "wrong model": refused(
                lambda: host.apply_adapter(tiny.load("flux" if family == "sd3" else "sd3", folder)[0], concepts[0][0], 1.0)
            ),
            "nothing to export": refused(lambda: ExportLoRA.execute(library, "one: 0", "x", "comfyui", "fp16")),
        },
        remarks=remarks(),
        unknown_library=LoadLibrary.validate_inputs("nothing"),
        targets=list(TARGETS),
        sdxl=sdxl_layers(),
    )
