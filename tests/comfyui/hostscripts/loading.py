"""What ComfyUI's own loader of LoRAs makes of a whole SDXL's files.

Arguments: a folder with <name>.safetensors, each the same concept, of which concept.safetensors has the host's own names.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import boot
import comfy.lora
import comfy.lora_convert
import comfy.sd1_clip
import comfy.utils
import torch
from checkpoints import sdxl_without_weights

folder = Path(sys.argv[1])
weights = sdxl_without_weights()
names = comfy.lora.model_lora_keys_unet(weights, {})
missed: list[str] = []
handler = logging.Handler()
handler.emit = lambda record: missed.append(record.getMessage())
logging.getLogger().addHandler(handler)


def changes(path: Path) -> dict[str, torch.Tensor]:
    """Weight -> the first column of its change, by what the host read."""
    read = comfy.lora.load_lora(comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(path))), names)
    found = {}
    for key, adapter in read.items():
        up, down, alpha, *_ = adapter.weights
        found[key] = (up @ down[:, :1]) * ((down.shape[0] if alpha is None else alpha) / down.shape[0])
    return found


wanted = {
    f"{key.removesuffix('.lora_up.weight')}.weight": up
    for key, up in comfy.utils.load_torch_file(str(folder / "concept.safetensors")).items()
    if key.endswith(".lora_up.weight")
}
told, truth = {}, changes(folder / "concept.safetensors")
for path in sorted(folder.glob("*.safetensors")):
    missed.clear()
    found = changes(path)
    same = [key for key in wanted if key in found and torch.allclose(found[key], truth[key], rtol=1e-5, atol=1e-7)]
    told[path.stem] = {"layers": len(wanted), "read": len(found), "same": len(same), "not loaded": list(missed)}


def embedding() -> dict[str, object]:
    """What SD1's own tokenizer puts in the place of an embedding that is named."""
    tokenizer = comfy.sd1_clip.SD1Tokenizer(embedding_directory=str(folder / "embeddings"))
    tokens = tokenizer.tokenize_with_weights("a photo of embedding:0001-one dog")["l"][0]
    put_in = [token for token, _ in tokens if isinstance(token, torch.Tensor)]
    (vectors,) = comfy.utils.load_torch_file(str(folder / "embeddings" / "0001-one.safetensors")).values()
    return {"vectors": len(put_in), "same": torch.equal(torch.stack(put_in), vectors)}


boot.report(
    embedding=embedding(),
    told=told,
    shapes=all(tuple(weights.state_dict()[key].shape)[0] == len(up) for key, up in wanted.items()),
)
