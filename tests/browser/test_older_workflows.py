"""Workflows that were saved when the training node had all options itself, opened in the editor of today."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.editor import Editor

FOLDER = Path(__file__).parents[1] / "data" / "workflows_v1"
TRAIN, OPTIONS = "SeqLoRA_TrainConcept", "SeqLoRA_TrainingOptions"
# Widgets of the older node: their places in widgets_values.
PLACES = {"basis_learning_rate": 6, "method": 8, "orthogonality": 9, "context": 10, "interference": 14, "preview_prompt": 19}
PLACES |= {"gradient_checkpointing": 15}
NEITHER = {"basis_learning_rate": -1, "gradient_checkpointing": "auto"}


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def widgets(editor: Editor, kind: str) -> list[dict[str, Any]]:
    """Of all nodes of a kind, in subgraphs too: what they are set to, by name."""
    return editor.page.evaluate(
        """(kind) => {
            const { rootGraph } = window.app
            const nodes = [rootGraph, ...rootGraph.subgraphs.values()].flatMap((graph) => graph.nodes)
            return nodes.filter((node) => node.type === kind).map(({ widgets }) => Object.fromEntries(
                widgets.filter(({ serialize }) => serialize !== false).map(({ name, value }) => [name, value])))
        }""",
        kind,
    )


def prompt(editor: Editor) -> dict[str, dict]:
    """What the editor would queue."""
    return editor.page.evaluate("async () => (await window.app.graphToPrompt()).output")


def test_values_stay_with_their_names(editor: Editor):
    editor.load(read("teach_two_concepts"))
    first, second = widgets(editor, TRAIN)
    assert first == {
        "concept_name": "penguin",
        "trigger": "",
        "class_word": "",
        "steps": 80,
        "batch_size": 8,
        "learning_rate": 0.02,
        "seed": 0,
        "preview_every": 20,
    }
    assert second == first | {"concept_name": "sunflower"}
    assert widgets(editor, OPTIONS) == []  # nothing was chosen that is not usual


def test_links_stay_with_their_inputs(editor: Editor):
    editor.load(read("teach_two_concepts"))
    queued = {key: node for key, node in prompt(editor).items() if node["class_type"] == TRAIN}
    one, two = (node["inputs"] for node in queued.values())
    assert (one["library"], two["library"]) == (["3", 0], ["6", 0])
    assert (one["images"], one["captions"], one["trigger"], one["class_word"]) == (["4", 0], ["4", 1], ["4", 2], ["4", 3])
    assert (two["images"], two["captions"], two["trigger"], two["class_word"]) == (["5", 0], ["5", 1], ["5", 2], ["5", 3])
    assert "options" not in one and "options" not in two


@pytest.mark.parametrize(
    "chosen,expected",
    [
        ({"method": "lora"}, {"method": "lora"}),
        ({"orthogonality": "free"}, {"orthogonality": "none"}),
        ({"context": "modular", "interference": 0.0}, {"co_training": "modular", "interference_weight": 0}),
        ({"basis_learning_rate": 0.0}, {"basis_learning_rate": 0}),
        ({"preview_prompt": "a red dog", "gradient_checkpointing": True}, {"preview_prompt": "a red dog"}),
    ],
    ids=str,
)
def test_what_was_chosen_goes_to_a_node_of_options(editor: Editor, chosen: dict[str, Any], expected: dict[str, Any]):
    workflow = read("teach_two_concepts")
    node = next(node for node in workflow["nodes"] if node["id"] == 7)
    for name, value in chosen.items():
        node["widgets_values"][PLACES[name]] = value
    editor.load(workflow)
    (options,) = widgets(editor, OPTIONS)
    editor.page.evaluate("() => window.app.graph.add(window.LiteGraph.createNode('SeqLoRA_TrainingOptions'))")
    usual = widgets(editor, OPTIONS)[1]
    kept = "on" if chosen.get("gradient_checkpointing") else "off"
    assert options == usual | {"gradient_checkpointing": kept} | expected
    linked = {key: node["inputs"].get("options") for key, node in prompt(editor).items() if node["class_type"] == TRAIN}
    assert linked["6"] is None and prompt(editor)[linked["7"][0]]["class_type"] == OPTIONS


@pytest.mark.host
def test_a_blueprint_in_a_workflow_keeps_what_it_shows_outside(host_editor: Editor):
    """There the rate of the basis is an input of the subgraph: its link goes on to the node of options."""
    workflow = read("Teach a concept")
    outside = workflow["nodes"][0]
    names = list(outside["widgets_values_named"])
    for name, value in {"steps": 7, "learning_rate": 0.02, "basis_learning_rate": 0.5}.items():
        outside["widgets_values"][names.index(name)] = outside["widgets_values_named"][name] = value
    host_editor.load(workflow)
    queued = list(prompt(host_editor).values())
    (train,), (options,) = ([node["inputs"] for node in queued if node["class_type"] == kind] for kind in (TRAIN, OPTIONS))
    assert (train["steps"], train["learning_rate"], options["basis_learning_rate"]) == (7, 0.02, 0.5)
    assert prompt(host_editor)[train["options"][0]]["class_type"] == OPTIONS


def test_what_is_saved_again_is_opened_as_it_is(editor: Editor):
    workflow = read("teach_two_concepts")
    workflow["nodes"][6]["widgets_values"][PLACES["method"]] = "lora"
    editor.load(copy.deepcopy(workflow))
    again = editor.saved()
    editor.load(again)
    assert [node["type"] for node in editor.saved()["nodes"]].count(OPTIONS) == 1
    assert prompt(editor) == prompt(editor) and widgets(editor, OPTIONS)[0]["method"] == "lora"
