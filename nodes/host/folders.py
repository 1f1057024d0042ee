"""Where libraries, exports and previews are."""

from __future__ import annotations

import itertools
import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import folder_paths
import yaml
from comfy.cli_args import args

from ...seqlora.errors import SeqLoRAError
from ...seqlora.io.atomic import is_within
from ...seqlora.io.names import checked_name, collision_key
from ...seqlora.library.writer import MANIFEST

FOLDER = "seqlora"
EMBEDDINGS = "embeddings"
logger = logging.getLogger("seqlora")


def register_folder() -> None:
    """Makes `models/seqlora` known, before what extra_model_paths.yaml names, but for places that are marked is_default; and
    `output/embeddings`, to which exports go, as the host itself does with `output/loras`."""
    folder_paths.add_model_folder_path(EMBEDDINGS, str(Path(folder_paths.get_output_directory()) / EMBEDDINGS))
    own = str(Path(folder_paths.models_dir) / FOLDER)
    # An unknown key starts with an empty set of extensions, which means every file to the host.
    places, extensions = folder_paths.folder_names_and_paths.setdefault(FOLDER, ([], set()))
    if own not in places:
        places.insert(sum(place in _default_places() for place in places), own)
    extensions.add(".safetensors")
    for place in places:
        if not _writable(Path(place)):
            logger.warning("%s cannot be written to; its libraries can be used, new concepts go elsewhere", place)


def _default_places() -> set[str]:
    """The places for libraries that are marked is_default; the host has put them first, and keeps no note of it."""
    beside = Path(folder_paths.__file__).with_name("extra_model_paths.yaml")
    files = [*([beside] if beside.is_file() else []), *map(Path, itertools.chain(*(args.extra_model_paths_config or ())))]
    marked = set()
    for file in files:
        for section in (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).values():
            if section and section.get("is_default"):
                base = file.absolute().parent / os.path.expandvars(os.path.expanduser(section.get("base_path") or ""))
                marked |= {os.path.normpath(base / line) for line in section.get(FOLDER, "").split("\n") if line}
    return marked


def _writable(place: Path) -> bool:
    """Whether a library could be made there; the place itself need not exist."""
    nearest = next(folder for folder in (place, *place.parents) if os.path.lexists(folder))
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _roots() -> list[Path]:
    return [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]


def _libraries() -> Iterator[Path]:
    """All libraries' folders, those first that win."""
    for root in _roots():
        if root.is_dir():
            found = (path.parent for path in root.glob(f"*/{MANIFEST}"))
            yield from sorted(path for path in found if not path.name.startswith("."))  # being unpacked


def _named(name: str) -> list[Path]:
    return [path for path in _libraries() if unicodedata.normalize("NFC", path.name) == name]


def library_names() -> list[str]:
    """All libraries in all folders, sorted."""
    return sorted({unicodedata.normalize("NFC", path.name) for path in _libraries()}, key=str.casefold)


def hidden_remark(name: str) -> str:
    """A sentence on another library of this name, which this one hides because its place comes first; "" if there is none."""
    hidden = _named(name)[1:]
    return f"There is another library '{name}' at {hidden[0].parent}; rename one of the folders to use both." if hidden else ""


def library_path(name: str) -> Path:
    """The folder of the library of this name: where it is, or where a new one goes, the first place that can be written to.

    Names only: a path is refused.
    """
    name = checked_name(name, "library name")
    roots = _roots()
    found = _named(name)
    return found[0] if found else next(filter(_writable, roots), roots[0]) / name


def new_library_path(name: str) -> Path:
    """The same, for a library that is made where there is none.

    Raises SeqLoRAError where one in any place has a name that some file systems, and most people, take for the same.
    """
    path, libraries = library_path(name), list(_libraries())
    for known in libraries:
        if path not in libraries and collision_key(known.name) == collision_key(path.name):
            raise SeqLoRAError(
                f"There is a library '{known.name}' at {known.parent}, which many systems take for '{path.name}'",
                "open that one or choose another name",
            )
    return path


def next_lora_path(prefix: str) -> tuple[Path, str]:
    """A new file in output/loras, which the host's LoRA loaders list, and its name there. `prefix` may name folders inside."""
    for part in prefix.split("/"):
        checked_name(part, "filename_prefix")
    try:
        folder, name, number, subfolder, _ = folder_paths.get_save_image_path(
            prefix, str(Path(folder_paths.get_output_directory()) / "loras")
        )
    except Exception as error:  # the host raises a bare one for a folder outside of its own
        raise SeqLoRAError(
            f"filename_prefix is '{prefix}', which is no place inside output/loras", "use a plain name"
        ) from error
    file = f"{name}_{number:05}.safetensors"
    return Path(folder) / file, (Path(subfolder) / file).as_posix()


def embeddings_folder(lora: str) -> Path:
    """Where the embeddings that belong to a LoRA go, by its name as loaders list it: there `embedding:` finds them."""
    return Path(folder_paths.get_output_directory()) / EMBEDDINGS / re.sub(r"\s", "_", lora.removesuffix(".safetensors"))


def preview_folder() -> tuple[Path, dict[str, str]]:
    """A folder that the host empties when it starts, and how its viewer is asked for a file there."""
    folder = Path(folder_paths.get_temp_directory()) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder, {"subfolder": FOLDER, "type": "temp"}


def input_folders() -> list[str]:
    """The folders inside the host's input folder, as its own dataset nodes list them."""
    return sorted(folder_paths.get_input_subfolders(), key=str.casefold)


def input_folder(name: str) -> Path:
    """Raises SeqLoRAError for a name that leads out of the input folder."""
    root = Path(folder_paths.get_input_directory())
    if not name.strip() or not is_within(root / name, root):
        raise SeqLoRAError(f"'{name}' is no folder inside input", "choose one from the list")
    return root / name
