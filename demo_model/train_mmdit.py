"""Train the benchmark's second base model on the demo model's pictures and text encoder; resumes from --out on its own.

    python demo_model/render_emoji.py --ship && python -m demo_model.train_mmdit

Writes the average of the weights to `build/emoji101/mmdit.safetensors`. A step takes about 0.6 s on two CPU cores with bf16
matrix units.
"""

import argparse
import copy
import time
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.emoji101.mmdit import CONFIG, WEIGHTS, MMDiTModel, velocity
from demo_model.train_unet import Pictures, learning_rate


def optimizers(transformer: SD3Transformer2DModel, rate: float, matrix_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, which learn several times faster so; AdamW for the rest."""
    matrices = [w for w in transformer.transformer_blocks.parameters() if w.ndim == 2]
    taken = {id(w) for w in matrices}
    others = [w for w in transformer.parameters() if id(w) not in taken]
    return [
        torch.optim.Muon(matrices, matrix_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
    ]


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(**CONFIG)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    for block in transformer.transformer_blocks:  # a block starts as the identity
        for modulation in (block.norm1.linear, block.norm1_context.linear):
            torch.nn.init.zeros_(modulation.weight)
    model, average = MMDiTModel(transformer.train()), copy.deepcopy(transformer)
    weights, averaged = list(transformer.parameters()), list(average.requires_grad_(False).parameters())
    both = optimizers(transformer, args.lr, args.matrix_lr)
    start, checkpoint = 0, args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        transformer.load_state_dict(state["transformer"]), average.load_state_dict(state["average"])
        for optimizer, kept in zip(both, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        start = state["step"]
    pictures, generator = Pictures(args.glyphs, 1000 + start), torch.Generator().manual_seed(start)
    clock, losses = time.time(), []
    for step in range(start, args.steps):
        images, captions = pictures.batch(args.batch)
        latents, context = model.micro.vae.encode(images), torch.stack(model.encode_captions(captions))
        sigma = torch.sigmoid(torch.randn(args.batch, generator=generator) * 1.2 + 0.5)[:, None, None, None]
        noise = torch.randn(latents.shape, generator=generator)
        # The fused CPU attention is slow to differentiate in bf16; plain matrix products are not.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            predicted = velocity(transformer, (1 - sigma) * latents + sigma * noise, sigma.flatten() * 1000, context)
        loss = (predicted.float() - (noise - latents)).pow(2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer, peak in zip(both, (args.matrix_lr, args.lr), strict=True):
            optimizer.param_groups[0]["lr"] = learning_rate(step + 1, args.steps, peak)
            optimizer.step()
            optimizer.zero_grad()
        torch._foreach_lerp_(averaged, [w.detach() for w in weights], max(0.0005, 1 / (1 + step / 8)))
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            took = (time.time() - clock) / len(losses)
            print(f"{step + 1} loss {sum(losses) / len(losses):.4f} {took:.3f} s/step", flush=True)
            clock, losses = time.time(), []
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            state = {"transformer": transformer.state_dict(), "average": average.state_dict(), "step": step + 1}
            torch.save({**state, "optimizers": [o.state_dict() for o in both]}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            save_file({name: tensor.half() for name, tensor in average.state_dict().items()}, args.weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/mmdit"))
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--glyphs", type=Path, default=Path("build/emoji/glyphs.npy"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--matrix-lr", type=float, default=5e-3)
    args = parser.parse_args()
    for folder in (args.out, args.weights.parent):
        folder.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
