"""Where libraries are looked for and made, with places named in an extra_model_paths.yaml. Argument: an empty folder."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import boot
import folder_paths
from comfy.cli_args import args
from comfy_api.latest._io import HiddenHolder
from seqlora_pack.nodes import host, library
from seqlora_pack.nodes.server import library_routes
from seqlora_pack.seqlora.errors import SeqLoRAError
from seqlora_pack.seqlora.library.store import Library
from utils.extra_config import load_extra_path_config

folder = Path(sys.argv[1])
models, nas, other = folder / "models", folder / "nas", folder / "other"
folder_paths.models_dir = str(models)
(folder / "file").write_text("no folder")
lines: list[str] = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("seqlora").addHandler(handler)


def registered(text: str) -> list[str]:
    """Places in order, relative to the folder, after the host has read this yaml and loaded the pack."""
    folder_paths.folder_names_and_paths.pop("seqlora", None)
    file = folder / "extra.yaml"
    file.write_text(text)
    args.extra_model_paths_config = [[str(file)]]
    load_extra_path_config(str(file))
    host.register_folder()
    return [Path(place).relative_to(folder).as_posix() for place in folder_paths.get_folder_paths("seqlora")]


def made(place: Path, name: str) -> Path:
    return Library.create(place / name, 4, 8, "attention").path


def at(name: str) -> str:
    return host.library_path(name).relative_to(folder).as_posix()


def yaml_of(place: Path, more: str = "") -> str:
    return f"{place.name}:\n    base_path: {place}\n    seqlora: libraries\n{more}"


def refusal(name: str) -> str:
    try:
        return str(host.new_library_path(name))
    except SeqLoRAError as error:
        return str(error)


default = "    is_default: true\n"
answer: dict[str, object] = {
    "plain": registered(yaml_of(nas)),
    "marked": registered(yaml_of(nas) + yaml_of(other, default)),
    "two marked": registered(
        f"one:\n    base_path: {other}\n    seqlora: |\n        a\n        b\n{default}" + yaml_of(nas, default)
    ),
    "own marked": registered(f"own:\n    base_path: {models}\n    seqlora: seqlora\n{default}" + yaml_of(nas, default)),
    "twice marked": registered(yaml_of(nas, default) + yaml_of(other) + f"again:\n    seqlora: nas/libraries\n{default}"),
    "loras marked": registered(f"a:\n    base_path: {other}\n    loras: x\n{default}" + yaml_of(nas)),
}
registered(yaml_of(nas))
made(nas / "libraries", "shared")
answer["existing"], answer["new"] = at("shared"), at("new")
made(models / "seqlora", "shared")
(entry,) = library_routes.libraries(None)["libraries"]  # type: ignore[arg-type]
answer["same name"], answer["first wins"] = entry["remark"], at("shared")
library.LoadLibrary.hidden = HiddenHolder.from_dict({})  # the host sets it for a node that it runs
library.LoadLibrary.execute("shared")
made(models / "seqlora", "x").rename(models / "seqlora" / "cafe\u0301")
answer["composed"] = [host.library_names(), at("caf\u00e9")]
answer["taken for the same"] = [refusal(name) for name in ("SHARED", "Cafe\u0301", "\uff53hared")]
made(nas / "libraries", "caf\u00e9")
answer["composed twice"] = host.hidden_remark("caf\u00e9")
registered(f"file:\n    base_path: {folder / 'file'}\n    seqlora: libraries\n{default}" + yaml_of(nas))
answer["unwritable default"] = [at("new"), at("shared")]
folder_paths.models_dir = str(folder / "file")
answer["unwritable"] = [registered(yaml_of(nas)), at("new")]
boot.report(**answer, log=lines)
