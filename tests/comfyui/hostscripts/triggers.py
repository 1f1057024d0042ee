"""Learned triggers on the host's own text encoders: what is learned, applied, exported, and what is left as it was.

Arguments: an empty folder, and families, "demo" or names in zoo.py whose text encoders this can build; of those after "reading"
only what the text encoder itself does.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boot
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.flux
import comfy.text_encoders.sd3_clip
import folder_paths
import tiny
import torch
import zoo
from comfy_api.latest._io import Hidden, HiddenHolder
from families import pictures
from seqlora_pack.nodes import host
from seqlora_pack.nodes.apply import ApplyComposed
from seqlora_pack.nodes.export import ExportLoRA
from seqlora_pack.nodes.host import demo_model
from seqlora_pack.nodes.host.learning_text import LearningText
from seqlora_pack.nodes.library import LibraryHandle
from seqlora_pack.nodes.prompt import ConceptPrompt
from seqlora_pack.nodes.train import TrainConcept
from seqlora_pack.seqlora.diffusion.batches import Batches, Examples, denoising_loss
from seqlora_pack.seqlora.io.safetensors_file import write_tensors
from seqlora_pack.seqlora.library.store import Library
from seqlora_pack.seqlora.lora.vectors import to_embedding
from seqlora_pack.seqlora.settings import Settings
from seqlora_pack.seqlora.training import measure
from seqlora_pack.seqlora.training.request import TrainingRequest
from seqlora_pack.seqlora.training.train import train_steps
from seqlora_pack.seqlora.training.trigger import LearnedTrigger
from torch import Tensor

for node in (ApplyComposed, ConceptPrompt, ExportLoRA):
    node.hidden = HiddenHolder.from_dict({})  # the host sets it for a node that it runs
TrainConcept.hidden = HiddenHolder.from_dict({Hidden.unique_id: "1"})
measure.MEASURED_SAMPLES = 4  # a training wants many more, this test only some
CAPTION = "a photo of zobiku thing"
PROMPTS = ("a cat", CAPTION, "(zobiku:1.3) thing, [a]", "Zobiku-thing and zobikus")
PLAIN = Settings(
    steps=6, batch_size=2, learning_rate=1e-3, basis_learning_rate=0.0, basis_init="random", interference_weight=0.0
)
LEARNED = PLAIN.with_(trigger_vectors=2, trigger_learning_rate=0.2)
# Few layers, and as wide as the models want it.
SMALL = {"num_hidden_layers": 3, "intermediate_size": 64}
T5 = {"num_layers": 1, "d_ff": 64, "num_heads": 2, "d_kv": 8}


def text_encoder(family: str, embeddings: str) -> comfy.sd.CLIP:
    """The host's own CLIP of a family, small and random."""
    kinds = {
        "SD 1.5": (comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer),
        "SDXL": (comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer),
        "SD3": (
            comfy.text_encoders.sd3_clip.sd3_clip(dtype_t5=torch.bfloat16),
            comfy.text_encoders.sd3_clip.SD3Tokenizer,
        ),
        "Flux.1 dev": (
            comfy.text_encoders.flux.flux_clip(dtype_t5=torch.bfloat16),
            comfy.text_encoders.flux.FluxTokenizer,
        ),
    }
    kind, tokenizer = kinds[family]
    target = SimpleNamespace(params={}, clip=kind, tokenizer=tokenizer)
    options = {f"{name}_model_config": config for name, config in (("clip_l", SMALL), ("clip_g", SMALL), ("t5xxl", T5))}
    clip = comfy.sd.CLIP(target, embedding_directory=[embeddings], model_options={"dtype": torch.float32, **options})
    generator = torch.Generator().manual_seed(0)
    for name, weight in clip.cond_stage_model.named_parameters():
        if weight.ndim < 2:
            weight.data = torch.ones_like(weight) if "norm" in name and name.endswith("weight") else torch.zeros_like(weight)
        else:  # large tables repeat themselves, which is quicker
            few = torch.randn(min(len(weight), 997), *weight.shape[1:], generator=generator) * weight.shape[1] ** -0.5
            weight.data = few.repeat(-(-len(weight) // len(few)), 1)[: len(weight)].to(weight.dtype)
    return clip


def encode(clip: Any, text: str) -> Any:
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def reading(family: str, folder: Path) -> dict[str, Any]:
    """What a CLIP makes of vectors that nobody taught."""
    with torch.inference_mode():
        clip = text_encoder(family, str(folder))
    generator, widths = torch.Generator().manual_seed(1), {"clip_l": 768, "clip_g": 1280}
    encoders = host.own_words.encoders_of(clip)
    vectors = {name: torch.randn(2, widths[name], generator=generator) for name in encoders}
    bare = {text: encode(clip, text) for text in PROMPTS}
    reads = host.with_own_words(clip, {"zobiku": vectors})
    write_tensors(folder / "zobiku.safetensors", to_embedding(vectors))
    with torch.inference_mode(), torch.inference_mode(False):
        learning = LearningText(clip, lambda: None)
        same_inside = [same(learning.encode(text, {"zobiku": vectors}), encode(reads, text)) for text in PROMPTS]
        wanted, along = ({name: torch.randn(own.shape, generator=generator) for name, own in vectors.items()} for _ in range(2))

        def found(step: float) -> tuple[Tensor, dict[str, Tensor]]:
            leaves = {name: (wanted[name] + step * along[name]).requires_grad_() for name in wanted}
            ((cond, options),) = learning.encode(CAPTION, {"zobiku": leaves})
            return cond.double().tanh().sum() + options["pooled_output"].double().tanh().sum(), leaves

        with torch.enable_grad():
            value, leaves = found(0.0)
            value.backward()
        slope = sum(float((leaves[name].grad.double() * along[name]).sum()) for name in leaves)
        expected = float(found(0.01)[0].detach() - found(-0.01)[0].detach()) / 0.02
    return {
        "encoders": list(encoders),
        "embedding": all(same(encode(reads, text), encode(clip, hand)) for text, hand in by_hand("embedding:zobiku").items()),
        "differs": not same(encode(reads, CAPTION), bare[CAPTION]),
        "other_words_kept": same(encode(reads, "a cat"), bare["a cat"]),
        "inside": all(same_inside),
        "gradient_error": abs(slope - expected) / abs(expected),
        "kept": all(same(encode(clip, text), bare[text]) for text in PROMPTS),
        "hooks_left": sum(len(m._forward_pre_hooks) for m in clip.cond_stage_model.modules()),
    }


def by_hand(embedding: str) -> dict[str, str]:
    """Prompts as one has to write them without us."""
    return {CAPTION: f"a photo of {embedding} thing", "(zobiku:1.3) thing, [a]": f"({embedding}:1.3) thing, [a]"}


def same(one: Any, other: Any) -> bool:
    """Two conditionings, to the bit."""
    parts = zip(one, other, strict=True)
    return all(
        torch.equal(a[0], b[0])
        and all(torch.equal(a[1][key], b[1][key]) for key in a[1] if isinstance(a[1][key], Tensor))
        and a[1].keys() == b[1].keys()
        for a, b in parts
    )


class Trial:
    def __init__(self, family: str, folder: Path):
        self.family, self.folder = family, folder
        self.embeddings = folder / "output" / "embeddings"
        tiny.use_folder(folder)
        folder_paths.set_temp_directory(str(folder / "temp"))
        with torch.inference_mode():
            if family == "demo":
                self.models = demo_model.load_demo_model()
            else:
                patcher, _, vae = zoo.build(family)
                self.models = patcher, text_encoder(family, str(self.embeddings)), vae
        self.clip = self.models[1]
        self.pictures = pictures(64)

    def train(self, library: Library, settings: Settings, name: str = "thing", trigger: str = "zobiku", stop_at: int = 0):
        def stopped(steps):
            for progress in steps:
                if stop_at and progress.phase == "training" and progress.step == stop_at:
                    comfy.model_management.interrupt_current_processing()
                yield progress

        def all_of(steps):
            return (yield from steps)

        lesson = TrainingRequest(name, trigger, "thing", self.pictures)
        with torch.inference_mode(), host.training_model(*self.models, False) as model:
            steps = train_steps(library, lesson, settings, model)
            return host.run_with_progress(stopped(steps) if stop_at else all_of(steps))

    def library(self, name: str) -> Library:
        return Library.create(self.folder / "seqlora" / name, 4, 4, "attention")

    def gradient_error(self) -> float:
        """Of the denoising loss, along a direction, against a central difference."""
        with torch.inference_mode(), host.training_model(*self.models, False) as model:
            shown = host.without_inference_mode(self.pictures)
            captions = [CAPTION, "a thing"] * 2
            examples = Examples(model.encode_pictures(shown), model.encode_captions(captions))
            trigger = LearnedTrigger(model, "zobiku", captions, 2)
            batch = Batches(examples, model.denoiser, 4, torch.Generator().manual_seed(1)).next()
            generator = torch.Generator().manual_seed(2)
            along = {name: torch.randn(leaf.shape, generator=generator) for name, leaf in trigger.leaves.items()}
            start = {name: leaf.detach().clone() for name, leaf in trigger.leaves.items()}

            def loss(step: float) -> Tensor:
                trigger.leaves = {name: (start[name] + step * along[name]).requires_grad_() for name in start}
                conds = trigger.conds(examples, batch.picked)
                return denoising_loss(model.denoiser, type(batch)(batch.x0, batch.noise, batch.sigma, conds, batch.picked))

            loss(0.0).backward()
            self.grads = {name: float(leaf.grad.norm()) for name, leaf in trigger.leaves.items()}
            found = sum(float((trigger.leaves[name].grad.double() * along[name]).sum()) for name in start)
            with torch.no_grad():
                step = 0.1 if self.family == "SD 1.5" else 0.02  # which hardly feels its text
                expected = (float(loss(step).double()) - float(loss(-step).double())) / (2 * step)
            return abs(found - expected) / abs(expected)

    def losses(self, triggers: dict) -> float:
        """On the training pictures and fixed noise, without any adapter."""
        with torch.inference_mode(), host.training_model(*self.models, False) as model, torch.no_grad():
            shown = host.without_inference_mode(self.pictures)
            examples = Examples(model.encode_pictures(shown), model.encode_captions([CAPTION] * len(shown), triggers))
            batches = Batches(examples, model.denoiser, 4, torch.Generator().manual_seed(99))
            return sum(float(denoising_loss(model.denoiser, batches.next())) for _ in range(6)) / 6

    def inside(self, triggers: dict, text: str) -> Any:
        """A prompt as previews encode it during a training."""
        with torch.inference_mode(), host.training_model(*self.models, False) as model, torch.no_grad():
            return [[cond, {k: v for k, v in options.items() if k != "guidance"}] for cond, options in
                    model._conditioning(text, triggers)]  # fmt: skip

    def word_error(self, bare: Any) -> float:
        """How far a caption is from itself where the trigger's vectors are those of its own tokens."""
        words = getattr(self.clip.tokenizer, next(iter(host.own_words.encoders_of(self.clip).values())))
        count = len(words.tokenizer("zobiku")["input_ids"]) - words.tokens_start - int(words.tokenizer_adds_end_token)
        with torch.inference_mode(), host.training_model(*self.models, False) as model:
            own = {"zobiku": model.own_vectors("zobiku", count)}
        found = encode(host.with_own_words(self.clip, own), CAPTION)
        pooled = [said[0][1].get("pooled_output") for said in (found, bare)]
        pairs = [(found[0][0], bare[0][0]), *([pooled] if pooled[0] is not None else [])]
        return max(float((one - other).abs().max()) for one, other in pairs)

    def parts(self, clip: Any) -> dict[str, str]:
        with torch.inference_mode(), host.training_model(self.models[0], clip, self.models[2], False) as model:
            return model.parts

    def state(self) -> tuple:
        module = self.clip.cond_stage_model
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("encode" in m.__dict__) for m in module.modules())
        weights = {name: (id(weight), weight.double().sum().item()) for name, weight in module.named_parameters()}
        return hooks, weights, id(self.clip.tokenizer), comfy.model_management.in_training

    def preview(self, library: Library) -> list[list[str]]:
        """Which triggers the previews of the node had vectors for."""
        asked, draw = [], host.HostModel.draw

        def watched(model, prompts, seed, triggers):
            asked.append(sorted(triggers))
            return draw(model, prompts, seed, triggers)

        host.HostModel.draw = watched
        given = {
            "model": self.models[0], "clip": self.clip, "vae": self.models[2], "library": LibraryHandle.of(library),
            "concept_name": "shown", "trigger": "vosk", "class_word": "thing", "steps": 2, "batch_size": 2,
            "learning_rate": 1e-3, "basis_learning_rate": 0.0, "seed": 0, "trigger_vectors": 1, "basis_init": "random",
            "interference_weight": 0.0, "preview_every": 2,
        }  # fmt: skip
        with torch.inference_mode():
            images = torch.stack(self.pictures)
            TrainConcept.execute(images=[images], **{key: [value] for key, value in given.items()})
        host.HostModel.draw = draw
        return asked

    def run(self) -> dict[str, Any]:
        comfy.model_management.load_models_gpu([self.clip.patcher])
        before, bare = self.state(), {text: encode(self.clip, text) for text in PROMPTS}
        none = self.train(self.library("none"), PLAIN)
        taught = self.train(self.library("first"), LEARNED)
        library = taught.library
        vectors = library.vectors("thing")
        own = {"zobiku": vectors}
        with torch.inference_mode(), host.training_model(*self.models, False) as model:
            start = {"zobiku": model.own_vectors("zobiku", 2)}

        handle = LibraryHandle.of(library)
        with torch.inference_mode():
            _, applied, *_ = ApplyComposed.execute(self.models[0], handle, "*", 1.0, self.clip).result
            _, off, *_ = ApplyComposed.execute(self.models[0], handle, "thing: 0", 1.0, self.clip).result
            _, without, *_ = ApplyComposed.execute(self.models[0], LibraryHandle.of(none.library), "*", 1.0, self.clip).result
            _, positive, negative, _ = ConceptPrompt.execute(
                self.models[0], self.clip, handle, "a photo of @thing", "zobiku:1"
            ).result
            name = ExportLoRA.execute(handle, "*", "my own/all", "comfyui", "fp16").result[0]
        (embedding,) = host.embeddings_folder(name).iterdir()
        written = f"embedding:{embedding.parent.name}/{embedding.stem}"
        stopped = self.library("stopped")
        try:
            self.train(stopped, LEARNED, stop_at=3)
            interrupted = False
        except comfy.model_management.InterruptProcessingException:
            interrupted = True
        resumed = self.train(stopped, LEARNED)
        return {
            "vectors": {encoder: list(learned.shape) for encoder, learned in vectors.items()},
            "moved": min(float((learned - start["zobiku"][k]).norm() / learned.norm()) for k, learned in vectors.items()),
            "notes": [none.report.note, taught.report.note],
            "gradient_error": self.gradient_error(),
            "grads": self.grads,
            "losses": [self.losses(start), self.losses(own)],
            "start_is_word": self.word_error(bare[CAPTION]),
            "other_words_kept": same(encode(applied, "a cat"), bare["a cat"]),
            "applied_differs": not same(encode(applied, CAPTION), bare[CAPTION]),
            "embedding": all(
                same(encode(applied, text), encode(self.clip, hand)) for text, hand in by_hand(written).items()
            )
            if self.family in ("SD 1.5", "SDXL")
            else None,
            "prompt": same(positive, encode(applied, "a photo of zobiku thing"))
            and same(negative, encode(applied, "zobiku:1")),
            "inside": [same(self.inside(own, text), encode(applied, text)) for text in PROMPTS],
            "handed_on": off is self.clip and without is self.clip,
            "kept": self.state() == before and all(same(encode(self.clip, text), bare[text]) for text in PROMPTS),
            "resumed": interrupted
            and resumed.report.resumed_at == 3
            and resumed.losses == taught.losses
            and all(torch.equal(vectors[k], v) for k, v in resumed.library.vectors("thing").items())
            and all(
                torch.equal(a, b)
                for layer, pair in library.load("thing").items()
                for a, b in zip(pair, resumed.library.load("thing")[layer], strict=True)
            ),
            "other_requests": [
                self.parts(self.clip) == self.parts(without),
                [k for k, v in self.parts(self.clip).items() if self.parts(applied)[k] != v],
            ],
            "previews": self.preview(library),
        }  # fmt: skip


if __name__ == "__main__":
    place, *families = sys.argv[1:]
    found = {}
    for number, family in enumerate(families):
        folder = Path(place) / str(number)
        folder.mkdir(parents=True)
        if "reading" in families[:number]:
            found[family] = reading(family, folder)
        elif family != "reading":
            found[family] = Trial(family, folder).run()
        shutil.rmtree(folder)
    boot.report(**found)
