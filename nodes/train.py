"""The node that teaches a concept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args, get_type_hints

from comfy_api.latest import io, ui
from torch import Tensor

from ..seqlora.errors import SeqLoRAError
from ..seqlora.settings import METHODS, Settings, method_settings
from ..seqlora.training.checkpoint import MINUTES
from ..seqlora.training.progress import Phase, Progress
from ..seqlora.training.request import TrainingRequest, check_request
from ..seqlora.training.train import TrainResult, describe_result, train_steps
from . import host
from .library import LibraryHandle, LibraryType, tell_changed
from .server import training_status
from .server.previews import EVERY, Previews

DEFAULTS = Settings()


def _choice(name: str, tooltip: str) -> Any:
    options = list(get_args(get_type_hints(Settings)[name]))
    return io.Combo.Input(name, options=options, default=getattr(DEFAULTS, name), optional=True, advanced=True, tooltip=tooltip)


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
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            inputs=[
                io.Model.Input("model", tooltip="The base model. LoRAs applied to it count as part of it."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                LibraryType.Input("library", tooltip="The library that the concept goes into."),
                io.Image.Input(
                    "images",
                    tooltip="Images of the concept, about 3 to 20: a batch, or a list with different sizes as the host's "
                    "dataset nodes give it. They are used at the size they have.",
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
                io.Int.Input(
                    "steps", default=DEFAULTS.steps, min=1, max=100000, tooltip="Training steps. 1000 to 2000 suit most models."
                ),
                io.Int.Input(
                    "batch_size",
                    default=DEFAULTS.batch_size,
                    min=1,
                    max=64,
                    tooltip="Images in a step. More is steadier, takes longer and needs more memory.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=DEFAULTS.learning_rate,
                    min=1e-7,
                    max=1.0,
                    step=1e-6,
                    round=False,
                    tooltip="Learning rate of the coefficients. 1e-4 to 3e-4 suits most models; the demo model wants 2e-2.",
                ),
                io.Float.Input(
                    "basis_learning_rate",
                    default=DEFAULTS.basis_learning_rate,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=False,
                    tooltip="Learning rate of the basis, usually a third of learning_rate. 0 keeps the basis as it starts.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    # Without this the editor would draw a new seed after each run, and so ask for another concept.
                    control_after_generate=False,
                    tooltip="The same seed and inputs teach the same concept.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=next(iter(METHODS)),
                    optional=True,
                    advanced=True,
                    tooltip="SeqLoRA, or a method to compare it with. These set some of the inputs below themselves.",
                ),
                _choice(
                    "orthogonality",
                    "exact: at right angles to all earlier concepts. metric: only the interference penalty keeps them apart. "
                    "none: plain LoRA.",
                ),
                _choice(
                    "co_training",
                    "What is on while the concept is learned: some earlier concepts at random (stochastic), none (modular) or "
                    "all (cumulative).",
                ),
                _choice(
                    "basis_init",
                    "Where the basis starts: directions that this concept uses and others do not (contrastive), those that it "
                    "uses most (pca), or any (random).",
                ),
                _choice(
                    "schedule",
                    "joint: one step for both factors. alternating: several steps of the coefficients for each of the basis. "
                    "finite_difference: a look-ahead, two passes a step.",
                ),
                io.Int.Input(
                    "inner_steps",
                    default=DEFAULTS.inner_steps,
                    min=1,
                    max=100,
                    optional=True,
                    advanced=True,
                    tooltip="Steps of the coefficients for each step of the basis; used by the schedules other than joint.",
                ),
                io.Float.Input(
                    "interference_weight",
                    default=DEFAULTS.interference_weight,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    optional=True,
                    advanced=True,
                    tooltip="How strongly the concept is kept from changing what the model does elsewhere, for each "
                    "concept that the library is planned for. 0 turns it off.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=host.has_accelerator(),
                    optional=True,
                    advanced=True,
                    tooltip="Computes parts of the model twice to need much less memory; about a third slower.",
                ),
                _choice(
                    "when_full",
                    "What happens where a layer has no direction left for an exactly orthogonal basis: the concept shares the "
                    "layer as under metric, or training is refused.",
                ),
                io.Float.Input(
                    "checkpoint_minutes",
                    default=MINUTES,
                    min=0.0,
                    max=1440.0,
                    step=0.5,
                    optional=True,
                    advanced=True,
                    tooltip="Minutes between two savings of the unfinished training, from which it goes on after a crash. "
                    "It is also saved when you cancel. 0: only then.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=EVERY,
                    min=0,
                    max=100000,
                    optional=True,
                    tooltip="Steps between two previews of the concept, and of an earlier one from the same noise. One more is "
                    "drawn at the end. 0: none.",
                ),
                io.String.Input(
                    "preview_prompt",
                    default="",
                    optional=True,
                    tooltip="What previews show. Empty: 'a photo of {trigger} {class word}'.",
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
    def execute(cls, images: list[Tensor], captions: list[str] | None = None, **given: list[Any]) -> io.NodeOutput:
        only = {name: values[0] for name, values in given.items()}  # is_input_list makes a list of every input
        pictures = split_pictures(images)
        lesson = TrainingRequest(
            only.pop("concept_name"),
            only.pop("trigger"),
            only.pop("class_word"),
            pictures,
            split_captions(captions or [], len(pictures)),
        )
        model, clip, vae, handle = (only.pop(name) for name in ("model", "clip", "vae", "library"))
        method, less_memory = only.pop("method", next(iter(METHODS))), only.pop("gradient_checkpointing", None)
        minutes = only.pop("checkpoint_minutes", MINUTES)
        every, prompt = only.pop("preview_every", EVERY), only.pop("preview_prompt", "")
        settings = method_settings(method, Settings(**only))
        if less_memory is None:
            less_memory = host.has_accelerator()
        node = cls.hidden.unique_id
        names = (handle.name, lesson.name.strip(), lesson.trigger.strip())
        with training_status.watched(node, workflow_id(cls.hidden.extra_pnginfo), *names) as training:
            library, lesson = handle.open(), check_request(lesson)  # before the host reads or moves a model
            with host.training_model(model, clip, vae, less_memory) as taught_model:
                lesson = replace(lesson, pictures=host.without_inference_mode(lesson.pictures))
                previews = Previews(training.names["id"], taught_model, library.path, lesson, every, prompt)

                def follow(progress: Progress) -> str | None:
                    training.follow(progress)
                    last = training.keep  # asked for while the last step was made
                    if previews.due(progress, last):
                        host.say(node, f"step {progress.step}/{progress.steps}: drawing a preview")
                        try:
                            training.show(previews.draw(progress))
                        except SeqLoRAError as error:  # the training itself is well
                            training.remark(str(error))
                    return "keep" if last else None

                taught = host.run_with_progress(train_steps(library, lesson, settings, taught_model, minutes), node, follow)
            tell_changed(taught.library.path.name)
            training.end(Phase.FINISHED, taught=taught)
        host.say(node, summary(taught))
        return io.NodeOutput(
            LibraryHandle.of(taught.library),
            {"loss": list(taught.losses)},
            json.dumps(describe_result(taught), indent=2, ensure_ascii=False),
            ui=ui.PreviewText(summary(taught)),
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


def summary(taught: TrainResult) -> str:
    record, library, figures = taught.record, taught.library, taught.report
    subject = f"{record.trigger} {record.class_word}".strip()
    lines = [f"{record.name}: write '{subject}' in prompts"]
    if taught.reused:
        lines.append("taught before with the same inputs; nothing was done")
    if "note" in figures:
        lines.append(figures["note"])
    if "resumed_at" in figures:
        lines.append(f"went on from step {figures['resumed_at']}")
    if "ended_early_at" in figures:
        lines.append(f"ended early, at step {figures['ended_early_at']} of {record.settings['steps']}")
    lines.append(f"loss {figures['first_loss']:.4f} -> {figures['last_loss']:.4f} in {figures['seconds']} s")
    if record.full_layers:
        lines.append(f"{len(record.full_layers)} layers were full and are shared softly")
    lines.append(f"library {library.path.name}: {len(library.concepts)} of {library.capacity} concepts")
    return "\n".join(lines)


NODES = [TrainConcept]
