"""The example workflows and help pages in a real ComfyUI: listed, served, and run as the editor would run them."""

from __future__ import annotations

import io
import json
import re
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from tests.support.hosts import PACK, HostServer

pytestmark = pytest.mark.host
FIRST, TWO = "SeqLoRA - first run (demo model)", "SeqLoRA - two in one picture"
OWN = tuple(f"SeqLoRA - your own pictures ({model})" for model in ("demo model", "SD 1.5", "SDXL", "Flux"))
NAMES = (FIRST, TWO, *OWN)
LIBRARY = "my first library"  # which the first run makes
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
    assert server.get(f"/api/workflow_templates/seqlora/{quote(name)}.json") == read(name)
    picture = server.get(f"/api/workflow_templates/seqlora/{quote(name)}.jpg")
    assert len(picture) <= 150_000
    with Image.open(io.BytesIO(picture)) as thumbnail:
        assert thumbnail.format == "JPEG" and min(thumbnail.size) >= 300


def fits(value: Any, kind: Any, options: dict[str, Any]) -> bool:
    """Whether a widget takes this value."""
    choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
    if choices is not None:
        return value in choices
    if kind in ("INT", "FLOAT"):
        return isinstance(value, int if kind == "INT" else (int, float)) and options["min"] <= value <= options["max"]
    return isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind])


@pytest.mark.parametrize("name", NAMES)
def test_every_node_input_value_and_link_is_as_the_host_has_it(server: HostServer, name: str):
    workflow = read(name)
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] not in NOTES}
    infos = {kind: server.get(f"/object_info/{kind}")[kind] for kind in {node["type"] for node in nodes.values()}}
    for node in nodes.values():
        info, later = infos[node["type"]], {model["name"] for model in node["properties"].get("models", [])} | {LIBRARY}
        inputs, values = inputs_of(info), widgets_of(node, info)
        assert {slot["name"] for slot in node["inputs"]} == set(inputs), node["type"]
        assert [slot["name"] for slot in node["outputs"]] == info["output_name"], node["type"]
        assert values.items() <= node.get("widgets_values_named", {}).items(), node["type"]
        wrong = {key: value for key, value in values.items() if value not in later and not fits(value, *inputs[key])}
        assert not wrong, node["type"]
    for _, source, output, target, place, kind in workflow["links"]:
        slot = nodes[target]["inputs"][place]["name"]
        given, taken = infos[nodes[source]["type"]]["output"][output], inputs_of(infos[nodes[target]["type"]])[slot][0]
        assert given == taken == kind, (nodes[source]["type"], nodes[target]["type"], slot)


def test_the_prompt_names_what_is_taught(server: HostServer):
    first = to_prompt(read(FIRST), server)
    taught = [node["inputs"]["concept"] for node in of_type(first, "SeqLoRA_DemoPictures")]
    assert [node["inputs"]["concept_name"] for node in of_type(first, "SeqLoRA_TrainConcept")] == taught
    for name in (FIRST, TWO):
        places = of_type(to_prompt(read(name), server), "SeqLoRA_ConceptRegion")
        assert [place["inputs"]["text"].partition("@")[2] for place in places] == taught
    for name in OWN:
        prompt = to_prompt(read(name), server)
        (train,), (said,) = of_type(prompt, "SeqLoRA_TrainConcept"), of_type(prompt, "SeqLoRA_ConceptPrompt")
        assert f'@"{train["inputs"]["concept_name"]}"' in said["inputs"]["text"]


def own(name: str, server: HostServer) -> dict[str, dict]:
    """The prompt of a template for own pictures, with a picture."""
    folder = server.input_dir / "own"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (80, 64), "orange").save(folder / "one.png")
    prompt = to_prompt(read(name), server)
    for node in of_type(prompt, "SeqLoRA_LoadPictures"):
        node["inputs"]["folder"] = "own"
    return prompt


@pytest.mark.parametrize("name", OWN[1:])
def test_nothing_but_the_models_files_is_missing(server: HostServer, name: str):
    errors = server.post("/prompt", {"prompt": own(name, server), "client_id": server.client_id})["node_errors"]
    told = [error for node in errors.values() for error in node["errors"]]
    files = {model["name"] for node in read(name)["nodes"] for model in node["properties"].get("models", [])}
    assert {error["type"] for error in told} == {"value_not_in_list"}
    assert {error["extra_info"]["received_value"] for error in told} == files


def test_taught_concepts_compose_to_a_picture(server: HostServer):
    for name, size in ((FIRST, (256, 512, 3)), (TWO, (256, 512, 3)), (OWN[0], (256, 256, 3))):
        prompt = own(name, server)
        for node in of_type(prompt, "SeqLoRA_TrainConcept"):
            node["inputs"] |= {"steps": 4, "batch_size": 2}
        outputs = server.run(prompt, timeout=400)
        (image,) = [image for output in outputs.values() for image in output.get("images", []) if image["type"] == "output"]
        picture = np.asarray(Image.open(server.output_dir / image["subfolder"] / image["filename"]).convert("RGB"))
        assert picture.shape == size and picture.std() > 5


def test_help_pages_name_every_input_and_output(server: HostServer):
    nodes = {name: info for name, info in server.get("/object_info").items() if name.startswith("SeqLoRA_")}
    assert nodes
    for name, info in nodes.items():
        page = server.get(f"/extensions/seqlora/docs/{name}.md").decode()
        rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
        assert page.startswith(f"# {info['display_name']}\n"), name
        assert sorted(rows) == sorted([*inputs_of(info), *info["output_name"]]), name
