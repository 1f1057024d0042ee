"""Static checks of what is published: metadata, sources, web files, help pages and example workflows."""

import ast
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = ("nodes", "seqlora", "tests", "benchmarks", "tools", "demo_model")
SOURCES = [ROOT / "__init__.py", *sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
ENTRY = ROOT / "web" / "seqlora.js"
SCRIPTS = sorted([*(ROOT / "web").rglob("*.js"), *(ROOT / "web").rglob("*.mjs")])

# Node types of ComfyUI itself (and its editor) that the example workflows may use.
HOST_NODES = {
    *("MarkdownNote", "Note", "PrimitiveNode", "Reroute"),
    *("ConditioningCombine", "ConditioningSetAreaPercentage", "ConditioningZeroOut"),
    *("DualCLIPLoader", "FluxGuidance", "UNETLoader", "VAELoader"),
    *("CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage", "EmptySD3LatentImage"),
    *("KSampler", "LoraLoaderModelOnly", "ModelSamplingSD3", "VAEDecode", "VAEEncode"),
    *("BasicGuider", "BasicScheduler", "CFGGuider", "KSamplerSelect", "RandomNoise", "SamplerCustomAdvanced"),
    *("ImageBatch", "ImageFromBatch", "ImageScale", "LoadImage", "PreviewImage", "RebatchImages", "SaveImage"),
    *("LoadImageDataSetFromFolder", "LoadImageTextDataSetFromFolder", "LossGraphNode", "PreviewAny"),
}
needs_web = pytest.mark.skipif(not (ROOT / "web").is_dir(), reason="there is no web/ folder")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def node_ids() -> list[str]:
    """Every node id that a schema in nodes/ declares."""
    if not (ROOT / "nodes").is_dir():
        pytest.skip("there is no nodes/ folder")
    text = "".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "nodes").glob("*.py")))
    found = re.findall(r"\bnode_id\s*=\s*[\"'](\w+)[\"']", text)
    assert found, "no node_id= in nodes/*.py"
    return found


def imported(path: Path) -> Iterator[str]:
    """Absolute module names that a source imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module


def test_requirements_repeat_the_dependencies():
    assert (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n")[:-1] == PROJECT["project"]["dependencies"]


def test_no_dependency_has_an_upper_bound():
    assert not [d for d in PROJECT["project"]["dependencies"] if re.search(r"<|==|~=|!=", d)]


def test_changelog_opens_with_the_version():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == PROJECT["project"]["version"]


def test_registry_metadata():
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", project["name"]) and "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["urls"]["Repository"].startswith("https://github.com/")
    assert comfy["PublisherId"] and comfy["DisplayName"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert "web" not in comfy, "with WEB_DIRECTORY it would load every script twice"


def test_licence_files_exist():
    assert all((ROOT / file).is_file() for file in PROJECT["project"]["license-files"])
    assert "Noto" in (ROOT / "NOTICE").read_text(encoding="utf-8")


def test_root_imports_without_a_host():
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec and spec.loader
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    assert inspect.iscoroutinefunction(pack.comfy_entrypoint)
    assert pack.WEB_DIRECTORY == "./web"
    # With this name ComfyUI would take the pack for an old one and never ask for comfy_entrypoint.
    assert not hasattr(pack, "NODE_CLASS_MAPPINGS")


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_source_is_ascii_and_never_evaluates_text(path: Path):
    assert path.read_bytes().isascii()
    calls = [node.func for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call)]
    assert not [f for f in calls if isinstance(f, ast.Name) and f.id in ("eval", "exec")]


@pytest.mark.parametrize("path", [p for p in SOURCES if name(p).startswith("seqlora/")], ids=name)
def test_core_imports_nothing_of_the_host(path: Path):
    banned = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "execution", "folder_paths", "nodes", "server"}
    assert not [module for module in imported(path) if module.split(".")[0] in banned]


@pytest.mark.parametrize("path", [p for p in SOURCES if name(p).startswith("nodes/")], ids=name)
def test_only_the_host_room_imports_private_host_modules(path: Path):
    # The pack is loaded under a name that its files cannot know, so its own modules are reachable by relative imports only.
    banned = {"nodes", "seqlora"}
    if path.parent.name != "host":
        banned |= {"comfy", "comfy_extras", "comfy_execution", "execution", "folder_paths", "server"}
    assert not [module for module in imported(path) if module.split(".")[0] in banned]


@needs_web
def test_the_editor_loads_one_script():
    # ComfyUI imports every .js file under web/ by itself; the others are the entry's to import.
    assert [path for path in SCRIPTS if path.suffix == ".js"] == [ENTRY]


@needs_web
@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts_import_only_the_public_modules(path: Path):
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"(?:\bfrom|\bimport)\s*\(?\s*[\"'`]([^\"'`]+)[\"'`]", text)
    public = r"\.{1,2}/(?:\w+/)?\w+\.mjs" + (r"|\.\./\.\./scripts/(?:app|api)\.js" if path == ENTRY else "")
    private = [target for target in targets if not re.fullmatch(public, target)]
    assert not private, f"{name(path)} imports {private}"


def test_node_ids_have_the_prefix_of_the_pack():
    ids = node_ids()
    assert len(set(ids)) == len(ids)
    assert not [i for i in ids if not i.startswith("SeqLoRA_")]


@needs_web
def test_every_node_has_a_help_page():
    missing = [i for i in node_ids() if not (ROOT / "web" / "docs" / f"{i}.md").is_file()]
    assert not missing, f"web/docs/ lacks a page for {missing}"
    unknown = {p.stem for p in (ROOT / "web" / "docs").glob("*.md")} - set(node_ids())
    assert not unknown, f"web/docs/ describes no known node: {unknown}"


@pytest.mark.skipif(not (ROOT / "workflows").is_dir(), reason="there is no workflows/ folder")
def test_there_are_workflows_and_only_workflows():
    assert WORKFLOWS
    assert {p.stem for p in WORKFLOWS} == {p.stem for p in (ROOT / "workflows").glob("*.jpg")}


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_workflow(path: Path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    with Image.open(path.with_suffix(".jpg")) as thumbnail:
        assert thumbnail.format == "JPEG"
    subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
    pack, known = set(node_ids()), HOST_NODES | {s["id"] for s in subgraphs if UUID.fullmatch(s["id"])}
    used = [node for graph in (workflow, *subgraphs) for node in graph["nodes"]]
    unknown = {node["type"] for node in used} - pack - known
    assert not unknown, f"neither this pack nor the list of ComfyUI's nodes above has {unknown}"
    ours = [node for node in used if node["type"] in pack]
    assert ours
    # From these two ComfyUI tells a user without the pack what to install.
    for node in ours:
        origin = {key: node["properties"].get(key) for key in ("cnr_id", "ver")}
        assert origin == {"cnr_id": PROJECT["project"]["name"], "ver": PROJECT["project"]["version"]}, node["type"]
