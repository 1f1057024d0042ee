"""The node that teaches a concept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..seqlora.errors import SeqLoRAError
from ..seqlora.io.text import literal
from ..seqlora.settings import NAMES_1, OPTIONS, RunOptions, Settings, settings_of
from ..seqlora.training.progress import Phase, Progress
from ..seqlora.training.request import TrainingRequest, check_request
from ..seqlora.training.result import TrainResult, describe_result
from ..seqlora.training.train import train_steps
from . import host
from .inputs import option_inputs
from .library import LibraryHandle, LibraryType, tell_changed
from .server import training_status
from .server.previews import Previews
from .training_options import OPTIONS_ONLY, TrainingOptionsType


class TrainConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SeqLoRA_TrainConcept",
            display_name="Train SeqLoRA Concept",
            category="SeqLoRA/train",
            description="Teaches the model one concept from a few images and files it in a library, so that it can be used "
            "together with every other concept there. The model itself is not changed. Queueing the same again finds "
            "the finished concept.",
            search_aliases=["lora training", "train lora", "dreambooth", "teach concept", "personalization"],
            is_input_list=True,  # images of different sizes come as a list
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo, io.Hidden.prompt],
            inputs=[
                io.Model.Input("model", tooltip="The base model. LoRAs applied to it count as part of it."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                LibraryType.Input("library", tooltip="The library that the concept goes into."),
                io.Image.Input(
                    "images",
                    tooltip="Images of the concept, about 3 to 20: a batch, or a list with different sizes as the host's "
                    "dataset nodes give it. Those of far more pixels than the model takes are scaled down.",
                ),
                io.String.Input(
                    "captions",
                    optional=True,
                    force_input=True,
                    tooltip="One caption for each image, as a list or as lines of one text. The trigger is put in front where "
                    "it is missing. Without captions, 'a photo of {trigger} {class word}' is used.",
                ),
                io.String.Input("concept_name", default="", tooltip="What the concept is called in the library."),
                io.String.Input(
                    "trigger", default="", tooltip="A made-up word that stands for the concept in prompts, such as 'zobiku'."
                ),
                io.String.Input(
                    "class_word", default="", tooltip="What kind of thing it is, such as 'dog' or 'watercolor style'."
                ),
                *option_inputs(option for option in OPTIONS.values() if not option.advanced),  # in the order of settings.py
                TrainingOptionsType.Input(
                    "options", optional=True, tooltip="From SeqLoRA Training Options, for whoever wants to choose more."
                ),
            ],
            outputs=[
                LibraryType.Output("library", tooltip="The library with the new concept, for the next node."),
                io.LossMap.Output(
                    "loss_map",
                    tooltip="The loss of every step, for Plot Loss Graph. Of a concept that was found again: a thinned curve.",
                ),
                io.String.Output("report", tooltip="What was taught and the figures, as JSON."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        captions: list[str] | None = None,
        options: list[Mapping[str, Any]] | None = None,
        **given: list[Any],
    ) -> io.NodeOutput:
        node = str(cls.hidden.unique_id)
        refuse_older_inputs((cls.hidden.prompt or {}).get(node, {}).get("inputs", {}))
        only = {name: values[0] for name, values in given.items()}  # is_input_list makes a list of every input
        chosen = {name: only.pop(name) for name in OPTIONS.keys() & only.keys()}
        settings, run = settings_of({**(options[0] if options else {}), **chosen})
        names = (only.pop("concept_name"), only.pop("trigger"), only.pop("class_word"))
        pictures = split_pictures(images)
        lesson = TrainingRequest(*names, pictures, split_captions(captions or [], len(pictures)))
        taught = train(node, workflow_id(cls.hidden.extra_pnginfo), lesson, settings, run, **only)
        return io.NodeOutput(
            LibraryHandle.of(taught.library),
            {"loss": list(taught.losses)},
            json.dumps(describe_result(taught), indent=2, ensure_ascii=False),
            ui=ui.PreviewText(summary(taught)),
        )


def train(
    node: str,
    workflow: str,
    lesson: TrainingRequest,
    settings: Settings,
    run: RunOptions,
    model: Any,
    clip: Any,
    vae: Any,
    library: LibraryHandle,
) -> TrainResult:
    """Trains on the host's model, watched from the editor."""
    with training_status.watched(node, workflow, library.name, lesson.name.strip(), lesson.subject) as training:
        opened, lesson = library.open(), check_request(lesson)  # before the host reads or moves a model
        less_memory = host.has_accelerator() if run.gradient_checkpointing == "auto" else run.gradient_checkpointing == "on"
        with host.training_model(model, clip, vae, less_memory) as taught_model:
            lesson = replace(lesson, pictures=host.without_inference_mode(lesson.pictures))
            previews = Previews(training.names["id"], taught_model, opened.path, lesson, run.preview_every, run.preview_prompt)

            def follow(progress: Progress) -> str | None:
                training.follow(progress)
                last = training.keep  # asked for while the last step was made
                if previews.due(progress, last):
                    try:
                        training.show(previews.draw(progress))
                    except SeqLoRAError as error:  # the training itself is well
                        training.remark(str(error))
                return "keep" if last else None

            steps = train_steps(opened, lesson, settings, taught_model, run.checkpoint_minutes, run.replace)
            taught = host.run_with_progress(steps, follow)
        tell_changed(taught.library.path.name)
        training.end(Phase.FINISHED, remarks(taught), taught)
    return taught


def refuse_older_inputs(inputs: Mapping[str, Any]) -> None:
    """Raises SeqLoRAError for a prompt made for this node as it was when it had all options itself: the host ignores inputs
    that it does not know, and another concept than the one asked for would be taught."""
    moved = OPTIONS_ONLY | {older for name, older in NAMES_1.items() if name in OPTIONS_ONLY}
    found = sorted(moved & inputs.keys())
    if found:
        raise SeqLoRAError(
            f"Train SeqLoRA Concept no longer takes {', '.join(found)}",
            f"give {'it' if len(found) == 1 else 'them'} to a SeqLoRA Training Options node and connect that to 'options'",
        )


def workflow_id(extra_pnginfo: Any) -> str:
    """The id of the workflow that the editor queued; "" for a prompt that came otherwise."""
    found = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, dict) else None
    name = found.get("id") if isinstance(found, dict) else None
    return name if isinstance(name, str) else ""


def split_pictures(images: Sequence[Tensor]) -> list[Tensor]:
    """Batches (b, h, w, c) of any sizes -> pictures (h, w, 3); an alpha channel is dropped."""
    return [picture[..., :3].float().cpu() for batch in images for picture in batch]


def split_captions(captions: Sequence[str], count: int) -> tuple[str, ...]:
    """One caption per picture, also from one text of several lines; none where all are empty."""
    if len(captions) == 1 and count > 1:
        captions = [line for line in captions[0].splitlines() if line.strip()]
    return tuple(captions) if any(caption.strip() for caption in captions) else ()


def remarks(taught: TrainResult) -> str:
    """What there is to say of a training that is not seen in its panel anyway."""
    record, report = taught.record, taught.report
    said = [report.note] if report.note else []
    if report.chosen_automatically:
        chosen = ", ".join(f"{name.replace('_', ' ')} {record.settings[name]:g}" for name in report.chosen_automatically)
        said.append(f"Chosen for this model ({report.model_family}): {chosen}.")
    if record.full_layers:
        said.append(f"{len(record.full_layers)} layers were full and are shared softly.")
    return " ".join(said)


def summary(taught: TrainResult) -> str:
    record, library, report = taught.record, taught.library, taught.report
    poor = {"hardly": "hardly learned", "spoilt": "went wrong"}.get(report.verdict)
    lines = [f"{record.name}: " + (poor or f"write '{literal(record.subject)}' in prompts")]
    if taught.reused:
        lines.append("taught before with the same inputs; nothing was done")
    lines += [remarks(taught)] if remarks(taught) else []
    if report.resumed_at is not None:
        lines.append(f"went on from step {report.resumed_at}")
    if report.ended_early_at is not None:
        lines.append(f"ended early, at step {report.ended_early_at} of {record.settings['steps']}")
    if report.kept is not None:
        lines.append(f"kept {report.kept:.0%} of what {report.adopted_from} does")
    if report.error_without is not None and report.error_with is not None:
        lines.append(f"error on its own pictures: {report.error_without:.4f} without it, {report.error_with:.4f} with it")
    lines.append(f"loss {report.first_loss:.4f} -> {report.last_loss:.4f} in {report.seconds} s")
    lines.append(f"library {library.path.name}: {len(library.concepts)} of {library.capacity} concepts")
    return "\n".join(lines)


NODES = [TrainConcept]
