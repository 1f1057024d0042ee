"""The example workflows and help pages in a real ComfyUI: listed, served, and run as the editor would run them."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seqlora.demo.pictures import held_out_emoji, trigger_word
from tests.support.hosts import PACK, HostServer

pytestmark = pytest.mark.host
NAMES = ("teach_two_concepts", "compose_two_concepts", "two_in_one_picture")
NOTES = ("MarkdownNote", "Note")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def read(name: str) -> dict[str, Any]:
    return json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def inputs_of(info: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Input name -> (type, options), in the order of the schema."""
    groups = (info["input"].get(kind, {}) for kind in ("required", "optional"))
    return {name: (entry[0], entry[1] if len(entry) > 1 else {}) for group in groups for name, entry in group.items()}


def widgets_of(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """Widget name -> value, by position, as the editor reads them."""
    values, found = list(node.get("widgets_values", [])), {}
    for name, (kind, options) in inputs_of(info).items():
        if (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput"):
            found[name] = values.pop(0)
            if name == "seed" and options.get("control_after_generate") is not False:
                values.pop(0)  # what the editor does to the seed after a run
    return found


def to_prompt(workflow: dict[str, Any], server: HostServer) -> dict[str, dict]:
    """The API form of a workflow without subgraphs."""
    origin = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] not in NOTES:
            inputs = widgets_of(node, server.get(f"/object_info/{node['type']}")[node["type"]])
            inputs |= {slot["name"]: origin[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
            prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def of_type(prompt: dict[str, dict], kind: str) -> list[dict]:
    return [node for node in prompt.values() if node["class_type"] == kind]


def test_the_template_browser_lists_them_under_the_pack(server: HostServer):
    assert set(server.get("/workflow_templates")["seqlora"]) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_workflow_and_thumbnail_are_served(server: HostServer, name: str):
    assert server.get(f"/api/workflow_templates/seqlora/{name}.json") == read(name)
    picture = server.get(f"/api/workflow_templates/seqlora/{name}.jpg")
    assert len(picture) <= 150_000
    with Image.open(io.BytesIO(picture)) as thumbnail:
        assert thumbnail.format == "JPEG" and min(thumbnail.size) >= 300


@pytest.mark.parametrize("name", NAMES)
def test_every_input_of_a_saved_node_is_one_of_the_schema(server: HostServer, name: str):
    for node in read(name)["nodes"]:
        if node["type"].startswith("SeqLoRA_"):
            info = server.get(f"/object_info/{node['type']}")[node["type"]]
            assert {slot["name"] for slot in node["inputs"]} == set(inputs_of(info)), node["type"]
            assert [slot["name"] for slot in node["outputs"]] == info["output_name"], node["type"]
            assert widgets_of(node, info).items() <= node.get("widgets_values_named", {}).items(), node["type"]


def test_the_prompt_names_what_is_taught(server: HostServer):
    taught = [node["inputs"]["concept"] for node in of_type(to_prompt(read(NAMES[0]), server), "SeqLoRA_DemoPictures")]
    assert [n["inputs"]["concept_name"] for n in of_type(to_prompt(read(NAMES[0]), server), "SeqLoRA_TrainConcept")] == taught
    compose = to_prompt(read(NAMES[1]), server)
    (apply,) = of_type(compose, "SeqLoRA_ApplyComposed")
    assert apply["inputs"]["concepts"].split("\n") == taught
    text = " ".join(node["inputs"]["text"] for node in of_type(compose, "CLIPTextEncode"))
    for emoji in (e for e in held_out_emoji() if e.name in taught):
        assert f"{trigger_word(emoji)} {emoji.class_word}" in text
    places = of_type(to_prompt(read(NAMES[2]), server), "SeqLoRA_ConceptRegion")
    assert [place["inputs"]["text"].partition("@")[2] for place in places] == taught


def test_taught_concepts_compose_to_a_picture(server: HostServer):
    teach = to_prompt(read(NAMES[0]), server)
    for node in of_type(teach, "SeqLoRA_TrainConcept"):
        node["inputs"] |= {"steps": 4, "batch_size": 2}
    server.run(teach, timeout=400)
    for name, width in ((NAMES[1], 448), (NAMES[2], 512)):
        outputs = server.run(to_prompt(read(name), server), timeout=200)
        (image,) = [image for output in outputs.values() for image in output.get("images", [])]
        picture = np.asarray(Image.open(server.output_dir / image["subfolder"] / image["filename"]).convert("RGB"))
        assert picture.shape == (256, width, 3)
        assert picture.std() > 5


def test_help_pages_name_every_input_and_output(server: HostServer):
    nodes = {name: info for name, info in server.get("/object_info").items() if name.startswith("SeqLoRA_")}
    assert nodes
    for name, info in nodes.items():
        page = server.get(f"/extensions/seqlora/docs/{name}.md").decode()
        rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
        assert page.startswith(f"# {info['display_name']}\n"), name
        assert sorted(rows) == sorted([*inputs_of(info), *info["output_name"]]), name
