"""Writes the example workflows, which the host shows in its template browser, from what a real ComfyUI says of their nodes.

.venv/bin/python -m tools.templates
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.support.hosts import PACK, HostServer
from tools.graph import Graph

FOLDER = PACK / "workflows"
FIRST = "SeqLoRA - first run (demo model)"
TWO = "SeqLoRA - two in one picture"
OWN = "SeqLoRA - your own pictures ({})"
LIBRARY, DEMO_CONCEPTS = "my first library", ("penguin", "sunflower")
THING, TRIGGER = "my thing", "zamilo"
SOURCE = "These nodes come with the pack **SeqLoRA**: github.com/seqlora/comfyui-seqlora\n"


Output = tuple[int, int]  # of a node: its id, the output's number


class Model(NamedTuple):
    """A model that people teach, as a template loads and samples it."""

    title: str
    side: int  # of pictures, in pixels
    rank: int
    capacity: int
    sampler: tuple[int, float, str, str]  # steps, cfg, sampler, scheduler
    files: tuple[tuple[str, str], ...] = ()  # folder/name, address
    latent: str = "EmptyLatentImage"


HUB = "https://huggingface.co"
FLUX = "flux1-dev.safetensors", "t5xxl_fp16.safetensors", "clip_l.safetensors", "ae.safetensors"
MODELS = (
    Model("demo model", 64, 4, 16, (25, 3.0, "euler", "simple")),
    Model(
        "SD 1.5",
        512,
        16,
        32,
        (25, 7.0, "dpmpp_2m", "karras"),
        (
            (
                "checkpoints/v1-5-pruned-emaonly-fp16.safetensors",
                f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
            ),
        ),
    ),
    Model(
        "SDXL",
        1024,
        16,
        32,
        (30, 6.5, "dpmpp_2m", "karras"),
        (
            (
                "checkpoints/sd_xl_base_1.0.safetensors",
                f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
            ),
        ),
    ),
    Model(
        "Flux",
        1024,
        16,
        32,
        (20, 1.0, "euler", "simple"),
        (
            (f"diffusion_models/{FLUX[0]}", f"{HUB}/Comfy-Org/flux1-dev/resolve/main/{FLUX[0]}"),
            (f"text_encoders/{FLUX[1]}", f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/{FLUX[1]}"),
            (f"text_encoders/{FLUX[2]}", f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/{FLUX[2]}"),
            (f"vae/{FLUX[3]}", f"{HUB}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/{FLUX[3]}"),
        ),
        "EmptySD3LatentImage",
    ),
)


def first_run(server: HostServer) -> None:
    graph = Graph(server)
    graph.column()
    graph.note(
        "## Two things that the model never saw\n\nPress **Run**. On a CPU this takes about two minutes; nothing is "
        "downloaded.\n\n1. **Demo Pictures** draws five pictures each of a penguin and a sunflower. The tiny demo model "
        "knows neither.\n2. Each **Train SeqLoRA Concept** teaches one of them into the same library. Watch it learn.\n3. "
        "Each **Concept Region** names one with an @ and gives it its place; **Concept Prompt** draws both in one pass.\n\n"
        f"Next: the templates **{OWN.format('demo model')}** and **{TWO}**.\n\n" + SOURCE,
        (300, 320),
    )
    model = graph.add("SeqLoRA_DemoModel", (300, 70))
    library = graph.add("SeqLoRA_CreateLibrary", (300, 190), {"name": LIBRARY, "rank": 4, "capacity": 16})
    pictures = [
        graph.add("SeqLoRA_DemoPictures", (300, 190), {"concept": name}, f"Pictures of the {name}") for name in DEMO_CONCEPTS
    ]
    before = (library, 0)
    for name, drawn in zip(DEMO_CONCEPTS, pictures, strict=True):
        graph.column()
        inputs = {"model": (model, 0), "clip": (model, 1), "vae": (model, 2), "library": before, "concept_name": name}
        inputs |= {"images": (drawn, 0), "captions": (drawn, 1), "trigger": (drawn, 2), "class_word": (drawn, 3)}
        before = (graph.add("SeqLoRA_TrainConcept", (300, 400), inputs, f"Teach the {name}"), 0)
    in_their_places(graph, model, before)
    graph.save(FOLDER / f"{FIRST}.json")


def two_in_one_picture(server: HostServer) -> None:
    graph = Graph(server)
    graph.column()
    graph.note(
        f"## Two in one picture\n\nRun the template **{FIRST}** first: it makes *{LIBRARY}*.\n\nEach **Concept Region** gives "
        "a concept its place: a box, in shares of the picture's sides, and a text of its own. **Concept Prompt** takes both "
        "places and says what all of the picture has in common. Everything is drawn in one pass.\n\nWith your own model and "
        "library it is the same: two people, each in a box, and a prompt such as *two friends in a park*.\n\nThen try:\n\n"
        "- swap the two texts\n- other boxes; leave a little room between them\n- a mask instead of a box\n- another *seed* in "
        f"**KSampler**\n\nIf *{LIBRARY}* is not in the list, press **R**: the editor reads the lists anew.\n\n" + SOURCE,
        (300, 540),
    )
    model = graph.add("SeqLoRA_DemoModel", (300, 70))
    library = graph.add("SeqLoRA_LoadLibrary", (300, 80), {"name": LIBRARY})
    in_their_places(graph, model, (library, 0))
    graph.save(FOLDER / f"{TWO}.json")


def in_their_places(graph: Graph, model: int, library: Output) -> None:
    """From a demo model and a library with both demo concepts to a picture of them side by side."""
    graph.column()
    places = None
    for side, name, x in zip(("left", "right"), DEMO_CONCEPTS, (0.06, 0.56), strict=True):
        inputs = {"text": f"a photo of @{name}", "x": x, "y": 0.06, "width": 0.38, "height": 0.88}
        inputs |= {"regions": (places, 0)} if places else {}
        places = graph.add("SeqLoRA_ConceptRegion", (270, 270), inputs, f"The {side} place")
    graph.column()
    inputs = {"model": (model, 0), "clip": (model, 1), "library": library, "regions": (places, 0)}
    prompt = graph.add("SeqLoRA_ConceptPrompt", (270, 330), inputs)
    latent = graph.add("EmptyLatentImage", (270, 110), {"width": 128, "height": 64})
    draw(graph, MODELS[0], prompt, (prompt, 1), latent, (model, 2), (512, 256))


def draw(
    graph: Graph, model: Model, prompt: int, positive: Output, latent: int, vae: Output, large: tuple[int, int] | None
) -> None:
    """Below the prompt the sampler; right of it the picture, where nothing lies over it."""
    inputs = {"model": (prompt, 0), "positive": positive, "negative": (prompt, 2), "latent_image": (latent, 0)}
    sampled = graph.add("KSampler", (270, 262), inputs | sampling(model))
    graph.column()
    saved = graph.add("SaveImage", (400, 330), {"filename_prefix": "seqlora"})
    image = graph.add("VAEDecode", (270, 50), {"samples": (sampled, 0), "vae": vae})
    if large:
        sizes = {"upscale_method": "bicubic", "width": large[0], "height": large[1]}
        image = graph.add("ImageScale", (270, 130), sizes | {"image": (image, 0)}, "Enlarge")
    graph.connect((image, 0), saved, "images")


def sampling(model: Model) -> dict[str, Any]:
    return {"seed": 5, **dict(zip(("steps", "cfg", "sampler_name", "scheduler"), model.sampler, strict=True))}


def own_pictures(server: HostServer, model: Model) -> None:
    graph = Graph(server)
    graph.column()
    graph.note(own_note(model), (300, 400))
    loaded = loaders(graph, model)
    sizes = {"name": f"my {model.title} library", "rank": model.rank, "capacity": model.capacity}
    library = graph.add("SeqLoRA_CreateLibrary", (300, 190), sizes)
    graph.column()
    pictures = graph.add("SeqLoRA_LoadPictures", (340, 560), {"resolution": model.side})
    graph.column()
    inputs: dict[str, Any] = loaded | {"library": (library, 0), "images": (pictures, 0), "captions": (pictures, 1)}
    inputs |= {"concept_name": THING, "trigger": TRIGGER, "class_word": "object"}
    trained = graph.add("SeqLoRA_TrainConcept", (300, 400), inputs)
    graph.column()
    text = f'a photo of @"{THING}" on a white background'
    inputs = {"model": loaded["model"], "clip": loaded["clip"], "library": (trained, 0), "text": text}
    prompt = graph.add("SeqLoRA_ConceptPrompt", (270, 260), inputs)
    latent = graph.add(model.latent, (270, 110), {"width": model.side, "height": model.side})
    positive = (prompt, 1)
    if model.title == "Flux":
        positive = (graph.add("FluxGuidance", (270, 60), {"conditioning": positive, "guidance": 3.5}), 0)
    draw(graph, model, prompt, positive, latent, loaded["vae"], (256, 256) if model.side < 256 else None)
    graph.save(FOLDER / f"{OWN.format(model.title)}.json")


def own_note(model: Model) -> str:
    what = model.title if model.files else "a tiny one of 64 x 64 pixels that comes with the pack; a CPU is enough"
    return (
        f"## Teach your own pictures\n\nThe model is {what}.\n\n1. Drop 3 to 20 pictures of one thing onto **Load Concept "
        "Pictures**.\n2. In **Train SeqLoRA Concept** say what it is: a name, a made-up word for prompts (the trigger, "
        f"**{TRIGGER}** here), and what kind of thing it is (the class word).\n3. Press **Run**. It is taught, filed in the "
        "library, and drawn.\n\nThe prompt names it with an @. Teach another: new pictures, another name and trigger, same "
        "library; both can then stand in one prompt.\n\n" + SOURCE
    )


def loaders(graph: Graph, model: Model) -> dict[str, Output]:
    if not model.files:
        demo = graph.add("SeqLoRA_DemoModel", (300, 70))
        return {"model": (demo, 0), "clip": (demo, 1), "vae": (demo, 2)}
    names = [at.partition("/")[2] for at, _ in model.files]
    if len(names) == 1:
        loaded = graph.add("CheckpointLoaderSimple", (300, 100), {"ckpt_name": names[0]}, files=model.files)
        return {"model": (loaded, 0), "clip": (loaded, 1), "vae": (loaded, 2)}
    unet = graph.add("UNETLoader", (300, 82), {"unet_name": names[0], "weight_dtype": "default"}, files=model.files[:1])
    texts = {"clip_name1": names[1], "clip_name2": names[2], "type": "flux"}
    clip = graph.add("DualCLIPLoader", (300, 130), texts, files=model.files[1:3])
    vae = graph.add("VAELoader", (300, 60), {"vae_name": names[3]}, files=model.files[3:])
    return {"model": (unet, 0), "clip": (clip, 0), "vae": (vae, 0)}


def main() -> None:
    with HostServer() as server:
        first_run(server)
        two_in_one_picture(server)
        for model in MODELS:
            own_pictures(server, model)


if __name__ == "__main__":
    main()
