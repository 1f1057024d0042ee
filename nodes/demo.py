"""Nodes that let anyone try the pack without a download: a small model and pictures to teach it."""

from __future__ import annotations

from comfy_api.latest import io

from ..seqlora.demo.micro import WEIGHTS
from ..seqlora.demo.pictures import concept_pictures, held_out_emoji, trigger_word
from .host.demo_model import load_demo_model

CATEGORY = "SeqLoRA/demo"


class DemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SeqLoRA_DemoModel",
            display_name="SeqLoRA Demo Model",
            category=CATEGORY,
            description="A tiny text-to-image model (64 x 64 emoji) that comes with SeqLoRA. It needs no download and runs "
            "on a CPU. Sample it with an Empty Latent Image of 64 x 64, euler, 25 steps, cfg 3 and prompts such as "
            "'a photo of a cat on a red background'.",
            search_aliases=["micro model", "emoji model", "seqlora example"],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The demo model: a small flow-matching UNet."),
                io.Clip.Output(tooltip="The demo model's word-level text encoder."),
                io.Vae.Output(tooltip="The demo model's autoencoder: 4 pixels a latent, 16 channels."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_demo_model())

    @classmethod
    def fingerprint_inputs(cls) -> str:
        """Changes when an update of the pack brings other weights, while the host keeps what it has loaded."""
        about = WEIGHTS.stat() if WEIGHTS.is_file() else None  # the node itself will say so when it runs
        return f"{about.st_mtime_ns} {about.st_size}" if about else "none"


class DemoPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [emoji.name for emoji in held_out_emoji()]
        return io.Schema(
            node_id="SeqLoRA_DemoPictures",
            display_name="SeqLoRA Demo Pictures",
            category=CATEGORY,
            description="Pictures of an emoji that the demo model has never seen, with captions: what to connect to Train "
            "SeqLoRA Concept for a first try.",
            search_aliases=["training images", "emoji pictures", "seqlora example"],
            inputs=[
                io.Combo.Input(
                    "concept", options=names, default=names[0], tooltip="The emoji to draw. The demo model knows none of these."
                ),
                io.Int.Input(
                    "count",
                    default=5,
                    min=1,
                    max=16,
                    tooltip="How many pictures: the emoji moved, turned and scaled a little, on different backgrounds.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=False,  # other pictures would be another concept
                    tooltip="Decides placement and backgrounds; the same seed draws the same pictures.",
                ),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="A list of pictures, 64 x 64."),
                io.String.Output(
                    "captions", is_output_list=True, tooltip="A list with one caption per picture, without the trigger word."
                ),
                io.String.Output("trigger", tooltip="A made-up word that stands for this emoji in prompts."),
                io.String.Output("class_word", tooltip="What kind of thing the emoji shows, such as 'animal'."),
            ],
        )

    @classmethod
    def execute(cls, concept: str, count: int, seed: int) -> io.NodeOutput:
        emoji = next(e for e in held_out_emoji() if e.name == concept)
        pictures, backgrounds = concept_pictures(emoji, count, seed)
        images = list(((pictures + 1) / 2).clamp(0, 1).movedim(1, -1).split(1))
        captions = [f"a photo of {emoji.class_word} on a {background} background" for background in backgrounds]
        return io.NodeOutput(images, captions, trigger_word(emoji), emoji.class_word)


NODES = [DemoModel, DemoPictures]
