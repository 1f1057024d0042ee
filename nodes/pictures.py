"""The node that reads a folder of pictures."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..seqlora.io.picture_list import parse_list
from ..seqlora.io.pictures import MAX_SIDE, read_folder
from . import host


class LoadPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SeqLoRA_LoadPictures",
            display_name="Load Concept Pictures",
            category="SeqLoRA/train",
            description="Takes pictures that you drop, paste or choose, or a folder of them, and reads them as a person sees "
            "them: upright, on white where they are transparent, each with a caption if you give it one. Says what was left "
            "out, cropped or is there twice.",
            search_aliases=["load folder", "training images", "dataset", "load images", "captions", "my pictures", "photos"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=["", *host.input_folders()],
                    tooltip="A folder inside the host's input folder, with pictures and perhaps a .txt or .caption of the same "
                    "name beside each.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=MAX_SIDE,
                    step=8,
                    tooltip="Scale each picture to about so many pixels a side, in its own proportions, cropped a little to "
                    "fit. 0: as they are, at most 2048 x 2048; training scales down what is far too large for the model.",
                ),
                io.String.Input(
                    "pictures",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Only these files of the folder, one a line, perhaps with a caption: 'mug.jpg | a mug on a table'. "
                    "Empty: all of them, with the captions in the text files beside them.",
                ),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="A list of pictures of their own sizes."),
                io.String.Output(
                    "captions",
                    is_output_list=True,
                    tooltip="A list with one caption for each picture; empty where there is none.",
                ),
                io.Mask.Output(
                    "masks",
                    is_output_list=True,
                    tooltip="How opaque each picture was; wholly where nothing was transparent.",
                ),
                io.String.Output("report", tooltip="How many there are, what was left out, what is remarkable."),
            ],
        )

    @classmethod
    def execute(cls, folder: str, resolution: int, pictures: str = "") -> io.NodeOutput:
        found = read_folder(host.input_folder(folder), resolution or None, parse_list(pictures))
        images = [picture.image[None] for picture in found.pictures]
        masks = [torch.ones(p.image.shape[:2])[None] if p.mask is None else p.mask[None] for p in found.pictures]
        report = "\n".join(found.lines())
        host.say(cls.hidden.unique_id, report)
        return io.NodeOutput(images, found.captions, masks, report, ui=ui.PreviewText(report))

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **_: object) -> str:
        """Changes when a file in the folder does."""
        if folder is None:  # it comes from another node
            return ""
        files = sorted(file for file in host.input_folder(folder).glob("*") if file.is_file())
        return "\n".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        known = host.input_folders()
        if folder is None or folder in known:
            return True
        if not folder:
            return "There is no folder chosen. Drop pictures onto the node, or choose a folder inside input."
        there = ", ".join(known) or "none yet, make one and put pictures in it"
        return f"There is no folder '{folder}' in input; there is: {there}."


NODES = [LoadPictures]
