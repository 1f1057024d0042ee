"""The command line: `seqlora train | sample | compose | report | info | export | demo`, and the care of libraries."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from .adapter import TARGETS
from .checkpoint import MINUTES
from .cli_library import add_commands as add_library_commands
from .composition import compose_library, parse_selection
from .errors import SeqLoRAError
from .files import write_bytes
from .library import Library
from .settings import METHODS, Settings, method_settings
from .teaching import Lesson, Model, about, teach
from .trainer import Progress, finish

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def read_pictures(folder: Path, side: int) -> tuple[list[torch.Tensor], list[str]]:
    """Pictures (h, w, 3) in 0..1, their shorter side scaled to `side` and cropped to multiples of 8, and the captions in
    `<picture>.txt` beside them (none unless every picture has one)."""
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES) if folder.is_dir() else []
    if not files:
        raise SeqLoRAError(f"There are no pictures in {folder}; put .png, .jpg or .webp files there.")
    pictures = []
    for path in files:
        try:
            image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # whatever a damaged picture raises
            raise SeqLoRAError(f"{path} cannot be read as a picture ({error}); remove or replace it.") from error
        scale = side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        width, height = image.width // 8 * 8, image.height // 8 * 8
        left, top = (image.width - width) // 2, (image.height - height) // 2
        cropped = np.asarray(image.crop((left, top, left + width, top + height)))
        pictures.append(torch.from_numpy(cropped.copy()).float() / 255)
    texts = [path.with_suffix(".txt") for path in files]
    try:
        captions = [text.read_text(encoding="utf-8").strip() for text in texts if text.is_file()]
    except (OSError, UnicodeDecodeError) as error:
        raise SeqLoRAError(f"A caption in {folder} cannot be read ({error}); save it as UTF-8 text.") from error
    if captions and len(captions) != len(files):
        missing = next(text.name for text in texts if not text.is_file())
        raise SeqLoRAError(f"{folder} has captions for some pictures only ({missing} is missing); write all of them, or none.")
    return pictures, captions


def load_model(spec: str) -> Model:
    if spec == "demo":
        from .backends.diffusers import DemoModel

        return DemoModel()
    from .backends.pipelines import load_pipeline

    return load_pipeline(Path(spec))


def show_progress(progress: Progress) -> None:
    if progress.note:
        print(f"\nseqlora: {progress.note}", file=sys.stderr)
    end = "\n" if progress.step == progress.steps else ""
    loss = f"  loss {progress.loss:.4f}" if progress.loss == progress.loss else ""
    print(f"\r{progress.phase} {progress.step}/{progress.steps}{loss}   ", end=end, file=sys.stderr, flush=True)


def train(args: argparse.Namespace) -> None:
    model = load_model(args.model)
    library = Library.create(args.library, args.rank, args.capacity, args.targets)
    side = args.size or model.picture_side  # type: ignore[attr-defined]
    pictures, captions = read_pictures(args.images, side)
    chosen = {k: getattr(args, k) for k in ("steps", "batch_size", "learning_rate", "basis_learning_rate", "seed")}
    settings = method_settings(args.method, Settings(**chosen))
    lesson = Lesson(args.name or args.images.name, args.trigger, args.class_word, pictures, captions)
    steps = teach(library, lesson, settings, model, args.checkpoint_minutes, args.replace)
    with ControlC() as pressed:
        taught = finish(steps, pressed.tell)
    print(json.dumps(about(taught), indent=1))


class ControlC:
    """Ctrl-C while a concept is taught: once ends the training and keeps what was learned, twice cancels it.

    Either waits for the end of the step, so that what is kept is whole; a third time does not wait.
    """

    def __enter__(self) -> ControlC:
        self.times, self.step = 0, 0
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        self.times += 1
        if self.times > 2:
            raise KeyboardInterrupt
        if self.times == 1:
            os.write(2, b"\nseqlora: keeping what was learned so far; Ctrl-C again cancels\n")  # print may be in use

    def tell(self, progress: Progress) -> str | None:
        show_progress(progress)
        if progress.phase == "training":
            self.step = progress.step
        if self.times > 1 or (self.times and not self.step):  # before the first step there is nothing to keep
            raise KeyboardInterrupt(f"; the same command goes on from step {self.step}" if self.step else "")
        return "keep" if self.times else None


def sample(args: argparse.Namespace) -> None:
    from .sampling import euler

    model = load_model(args.model)
    composed = {}
    if args.library:
        library = Library.open(args.library)
        composed = compose_library(library, parse_selection("\n".join(args.concepts), library.names))
    generator = torch.Generator().manual_seed(args.seed)
    with torch.inference_mode(), model.using(composed):  # type: ignore[attr-defined]
        noise = torch.randn(args.count, *model.latent_shape, generator=generator)  # type: ignore[attr-defined]
        cond, uncond = model.encode_captions([args.prompt, ""])
        guidance = model.default_guidance if args.guidance is None else args.guidance  # type: ignore[attr-defined]
        latents = euler(model.denoiser, noise, [cond] * args.count, [uncond] * args.count, guidance, args.steps)
        pictures = model.decode(latents)  # type: ignore[attr-defined]
    row = torch.cat(list(pictures), 1).clamp(0, 1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((row * 255).round().to(torch.uint8).cpu().numpy()).save(args.out)
    print(args.out)


def compose(args: argparse.Namespace) -> None:
    """What summing these concepts gives: ranks, overlap and crosstalk."""
    from . import metrics

    library = Library.open(args.library)
    selection = parse_selection("\n".join(args.concepts), library.names)
    if not selection:
        raise SeqLoRAError("No concept is selected; name at least one, or '*' for all.")
    concepts = [library.load(name) for name in selection]
    composed = compose_library(library, selection)
    across, within = metrics.basis_error(concepts)
    table = metrics.crosstalk(concepts, [library.moments(name) for name in selection])
    print(f"{len(concepts)} concepts on {len(composed)} layers, rank {max(p.A.shape[1] for p in composed.values())} in all")
    print(f"largest entry of B_i'B_j {across:.1e}, largest error of B_i'B_i = I {within:.1e}")
    print("crosstalk: how much a concept (row) acts on what another (column) sees, as a share of that one's own change")
    width = max(len(name) for name in selection)
    for name, row in zip(selection, table.tolist(), strict=True):
        print(f"{name:>{width}}  " + " ".join(f"{value:6.3f}" for value in row))


def report(args: argparse.Namespace) -> None:
    """What the concepts do to themselves, each other and the model; docs/theory.md says what the columns mean."""
    from .picture import as_png, draw_report
    from .report import library_report

    library = Library.open(args.library)
    selection = parse_selection("\n".join(args.concepts), library.names)
    found = library_report(library, selection, args.delta, args.sub_gaussian_constant)
    columns = {
        "captured": "captured_energy",
        "disturbed": "disturbance",
        "bound": "disturbance_bound",
        "of output": "disturbance_of_output",
        "its bound": "disturbance_bound_of_output",
        "prior": "prior_disturbance",
        "change": "change_norm",
    }
    width = max(len(name) for name in selection)
    print(f"{len(selection)} concepts, {found['layers']} layers; bounds at probability {1 - args.delta:g} for inputs as stored")
    print(f"{'':>{width}}  rank " + " ".join(f"{title:>9}" for title in columns) + "  full  worst layer, its bound of output")
    for entry in found["concepts"]:
        values = (entry[key] for key in columns.values())
        cells = " ".join(f"{'-' if value is None else format(value, '.4f'):>9}" for value in values)
        worst = f"{entry['worst_layer']} {entry['worst_layer_bound_of_output']:.4f}" if entry["worst_layer"] else "none"
        print(f"{entry['name']:>{width}}  {entry['rank']:>4} {cells}  {len(entry['full_layers']):>4}  {worst}")
    for title in ("overlap", "crosstalk"):
        print(f"{title} of a concept (row) with another (column)")
        for name, row in zip(selection, found[title], strict=True):
            print(f"{name:>{width}}  " + " ".join(f"{value:6.3f}" for value in row))
    if args.json:
        write_bytes(args.json, json.dumps(found, indent=1, ensure_ascii=False).encode())
    if args.picture:
        write_bytes(args.picture, as_png(draw_report(found)))


def info(args: argparse.Namespace) -> None:
    library = Library.open(args.library)
    family = library.base.family if library.base else "no model yet"
    print(f"{library.path.name}: {len(library.concepts)} of {library.capacity} concepts, rank {library.rank}, {family}")
    for record in library.concepts:
        full = f", {len(record.full_layers)} layers were full" if record.full_layers else ""
        print(f"  {record.name}: '{record.trigger} {record.class_word}', {record.created}{full}")


def export(args: argparse.Namespace) -> None:
    from .export import export_composed

    library = Library.open(args.library)
    selection = parse_selection("\n".join(args.concepts), library.names)
    print(export_composed(library, selection, args.out, args.format, args.dtype))


def demo(args: argparse.Namespace) -> None:
    from .demo.show import run_demo, summary

    figures = run_demo(args.out, args.concepts, args.seed)
    print(summary(figures))
    print(f"{figures['seconds']} seconds in all; {args.out / 'demo.png'} and {args.out / 'demo.json'} were written")


def folder(text: str) -> Path:
    try:
        return Path(text).resolve()  # "." has a name too
    except (OSError, RuntimeError) as error:  # links in a circle
        raise argparse.ArgumentTypeError(f"{text} is no folder ({error})") from error


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="seqlora", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="command")
    defaults = Settings()

    def command(name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        return sub

    def with_library(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("library", type=folder, help="the library's folder")
        sub.add_argument("concepts", nargs="*", default=["*"], help="'name' or 'name: 0.8'; all of them if none is given")

    sub = command("train", train, "teach a concept from a folder of pictures")
    sub.add_argument("images", type=Path, help="folder of pictures, each with a .txt caption beside it or none")
    sub.add_argument("--library", type=folder, required=True, help="the library's folder; made if it does not exist")
    sub.add_argument("--model", default="demo", help="a folder with a diffusers pipeline, or 'demo'")
    sub.add_argument("--name", help="the concept's name; the folder's name if not given")
    sub.add_argument("--trigger", required=True, help="a made-up word that stands for the concept in prompts")
    sub.add_argument("--class-word", default="", help="what kind of thing it is, such as 'dog'")
    sub.add_argument("--rank", type=int, default=16)
    sub.add_argument("--capacity", type=int, default=32, help="how many concepts the library is planned for")
    sub.add_argument("--targets", default="attention and mlp", choices=list(TARGETS))
    sub.add_argument("--method", default="seqlora", choices=list(METHODS))
    sub.add_argument("--size", type=int, help="shorter side of the pictures in pixels; the model's own if not given")
    sub.add_argument("--steps", type=int, default=defaults.steps)
    sub.add_argument("--batch-size", type=int, default=defaults.batch_size)
    sub.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    sub.add_argument("--basis-learning-rate", type=float, default=defaults.basis_learning_rate)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--replace", action="store_true", help="teach a concept anew; the old one stays until this is done")
    sub.add_argument("--checkpoint-minutes", type=float, default=MINUTES, help="between two savings of the unfinished training")

    sub = command("sample", sample, "draw pictures with any of a library's concepts")
    sub.add_argument("prompt")
    sub.add_argument("concepts", nargs="*", default=["*"], help="'name' or 'name: 0.8'; all of them if none is given")
    sub.add_argument("--library", type=folder, help="the library's folder; the bare model if not given")
    sub.add_argument("--model", default="demo", help="a folder with a diffusers pipeline, or 'demo'")
    sub.add_argument("--out", type=Path, default=Path("sample.png"))
    sub.add_argument("--count", type=int, default=4)
    sub.add_argument("--steps", type=int, default=25)
    sub.add_argument("--guidance", type=float, help="the model's usual one if not given")
    sub.add_argument("--seed", type=int, default=0)

    with_library(command("compose", compose, "show what summing concepts gives: ranks, overlap, crosstalk"))

    sub = command("report", report, "bound how much each concept suffers from the others; overlap and crosstalk")
    with_library(sub)
    sub.add_argument("--delta", type=float, default=0.05, help="chance that a bound fails")
    sub.add_argument("--sub-gaussian-constant", type=float, default=1.0, help="of the layers' inputs; 1 is a Gaussian's")
    sub.add_argument("--json", type=Path, help="also write everything to this file")
    sub.add_argument("--picture", type=Path, help="also draw it, as a PNG")

    sub = command("info", info, "list a library")
    sub.add_argument("library", type=folder, help="the library's folder")

    add_library_commands(command, folder)

    sub = command("export", export, "write the sum of concepts as one ordinary LoRA file")
    with_library(sub)
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--format", default="comfyui", choices=["comfyui", "kohya", "diffusers"])
    sub.add_argument("--dtype", default="fp16", choices=["fp16", "fp32"])

    sub = command("demo", demo, "teach eight emoji to the demo model and draw all of them together")
    sub.add_argument("--out", type=Path, default=Path("build/demo"))
    sub.add_argument("--concepts", type=int, default=8)
    sub.add_argument("--seed", type=int, default=0)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except (SeqLoRAError, OSError) as error:
        print(f"seqlora: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\nseqlora: cancelled; the library is as it was{''.join(stop.args)}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
