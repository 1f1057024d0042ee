"""What the pack says in the editor: complete in every language, and the same as the nodes themselves say."""

import json
import re
from pathlib import Path

import pytest

from seqlora.settings import OPTIONS
from tests.support.hosts import HostServer
from tests.support.snapshot import SNAPSHOT, snapshot_of
from tools.help_tables import renewed
from tools.screenshots import FIRST_RUN, OWN_RUN
from tools.update_locales import LOCALES, ROOT, keys_of, words_of

DOCS = ROOT / "web" / "docs"
LANGUAGES = sorted(path.name for path in LOCALES.iterdir())
OTHERS = [language for language in LANGUAGES if language != "en"]
NODES = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
CHINESE = re.compile("[\u4e00-\u9fff]")
# Sentences end and pause as Chinese ones do; "name: 0.8" is what one writes into a node.
LATIN_PAUSE = re.compile(r"[\u4e00-\u9fff]([,;!?]|:(?! \d)|\.( |$))")
# What is written in Latin letters in Chinese too.
NAMES = re.compile(r"[A-Z]{3,}|SeqLoRA")


def read(language: str, file: str) -> dict:
    return json.loads((LOCALES / language / file).read_text(encoding="utf-8"))


def word(tree: dict, key: str) -> str:
    for part in key.split("/")[1:]:
        tree = tree[part]
    return tree


def page(node: str, language: str) -> Path:
    """Where the editor looks for a node's help."""
    return DOCS / f"{node}.md" if language == "en" else DOCS / node / f"{language}.md"


def test_there_are_the_languages():
    assert LANGUAGES == ["en", "zh"]


def test_english_words_are_those_of_the_nodes():
    assert read("en", "nodeDefs.json") == words_of(NODES), "run: python -m tools.update_locales"


@pytest.mark.parametrize("file", ["main.json", "nodeDefs.json"])
@pytest.mark.parametrize("language", OTHERS)
def test_every_language_has_every_word(language: str, file: str):
    english, other = read("en", file), read(language, file)
    assert keys_of(other) == keys_of(english)
    for key in keys_of(english):
        said, wanted = word(other, key), word(english, key)
        assert said.strip() == said and said, key
        holes = re.compile(r"\{[\w ]+\}")
        assert sorted(set(holes.findall(said))) == sorted(set(holes.findall(wanted))), key


@pytest.mark.parametrize("file", ["main.json", "nodeDefs.json"])
def test_chinese_is_chinese(file: str):
    words = {key: word(read("zh", file), key) for key in keys_of(read("zh", file))}
    assert not [key for key, said in words.items() if not CHINESE.search(said) and not NAMES.fullmatch(said)]
    assert not [key for key, said in words.items() if LATIN_PAUSE.search(said)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_name_or_description_is_taken_for_a_message_with_parts(language: str):
    """The editor reads these as messages, in which braces, bars and at-signs mean something."""
    for node, words in read(language, "nodeDefs.json").items():
        slots = [*words.get("inputs", {}).values(), *words["outputs"].values()]
        for text in (words["display_name"], words["description"], *(slot["name"] for slot in slots)):
            assert not re.search(r"[{}|@]", text), (node, text)


def test_every_node_is_found_by_other_words_too():
    assert all(info["search_aliases"] for info in NODES.values())


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", sorted(NODES))
def test_a_help_page_names_everything_and_has_a_picture(node: str, language: str):
    words, text = read(language, "nodeDefs.json")[node], page(node, language).read_text(encoding="utf-8")
    assert text.startswith(f"# {words['display_name']}\n")
    info = NODES[node]
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    inputs = [key for kind in ("required", "optional") for key in info["input"].get(kind, {})]
    assert sorted(rows) == sorted([*inputs, *info["output_name"]])
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", text)
    assert pictures
    for told, picture in pictures:
        assert (DOCS / picture).is_file() and (DOCS / picture).stat().st_size < 150_000, picture
        assert '"' not in told  # the editor would end the attribute there


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", ["SeqLoRA_TrainConcept", "SeqLoRA_TrainingOptions"])
def test_tables_of_settings_are_those_of_the_code(node: str, language: str):
    text = page(node, language).read_text(encoding="utf-8")
    assert "<!-- settings -->" in text
    assert text == renewed(text, read(language, "nodeDefs.json")[node], language), "run: python -m tools.update_locales"


def test_inputs_of_the_nodes_are_the_settings():
    """Default, bounds, choices and help of every setting, on one of the two nodes and nowhere else."""
    given = [NODES[node]["input"].get("optional", {}) for node in ("SeqLoRA_TrainConcept", "SeqLoRA_TrainingOptions")]
    found = {name: about for inputs in given for name, (_, about) in inputs.items() if name in OPTIONS}
    assert found.keys() == OPTIONS.keys() and not given[0].keys() & given[1].keys()
    for name, option in OPTIONS.items():
        about = found[name]
        assert (about["default"], about["tooltip"]) == (option.default, option.help), name
        assert tuple(about.get("options", ())) == option.choices, name
        if "min" in about:
            assert (about["min"], about["max"], about["step"]) == (option.least, option.most, option.step), name


def test_a_newcomer_sees_at_most_ten_widgets():
    info, kinds = NODES["SeqLoRA_TrainConcept"]["input"], ("STRING", "INT", "FLOAT", "BOOLEAN", "COMBO")
    entries = [entry for kind in ("required", "optional") for entry in info[kind].values()]
    assert len([kind for kind, about in entries if kind in kinds and not about.get("forceInput")]) <= 10


@pytest.mark.host
def test_the_snapshot_is_what_the_host_says(server: HostServer):
    assert snapshot_of(server.get("/object_info")) == NODES, "run: python -m tools.update_locales"


@pytest.mark.host
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_host_serves_the_words(server: HostServer, language: str):
    served = server.get("/api/i18n")[language]
    assert served["nodeDefs"] == read(language, "nodeDefs.json")
    assert served["seqlora"] == read(language, "main.json")["seqlora"]
    for node in NODES:
        page_of = page(node, language).relative_to(DOCS).as_posix()
        assert server.get(f"/extensions/seqlora/docs/{page_of}").decode() == page(node, language).read_text(encoding="utf-8")


def test_the_first_run_is_written_as_it_is_tried():
    """`make screenshots` clicks these; here only the page is held against it."""
    text = (ROOT / "docs" / "first-run.md").read_text(encoding="utf-8")
    written = re.findall(r"^\d+\. Click \*\*(.+?)\*\*", text, re.MULTILINE)
    assert tuple(written) == FIRST_RUN + OWN_RUN


def test_every_picture_of_a_document_is_there():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    told = [(page, picture) for page in pages for picture in re.findall(r"\]\(([^)]+\.(?:png|jpg))\)", page.read_text("utf-8"))]
    assert told
    assert not [(page.name, picture) for page, picture in told if not (page.parent / picture).is_file()]
