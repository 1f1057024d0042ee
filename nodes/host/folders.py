"""Where libraries, exports and previews are."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...seqlora.errors import SeqLoRAError
from ...seqlora.io.names import checked_name
from ...seqlora.library.writer import MANIFEST

FOLDER = "seqlora"


def register_folder() -> None:
    """Makes `models/seqlora` known, beside what extra_model_paths.yaml may have named."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    # An unknown key starts with an empty set of extensions, which means every file to the host.
    folder_paths.folder_names_and_paths[FOLDER][1].add(".safetensors")


def library_names() -> list[str]:
    """All libraries in all folders, sorted."""
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]
    return sorted(
        {path.parent.name for root in roots if root.is_dir() for path in root.glob(f"*/{MANIFEST}")}, key=str.casefold
    )


def library_path(name: str) -> Path:
    """The folder of the library of this name: where it is, or where a new one goes. Names only: a path is refused."""
    name = checked_name(name, "library name")
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]
    found = [root / name for root in roots if (root / name / MANIFEST).is_file()]
    return found[0] if found else roots[0] / name


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


def preview_folder() -> tuple[Path, dict[str, str]]:
    """A folder that the host empties when it starts, and how its viewer is asked for a file there."""
    folder = Path(folder_paths.get_temp_directory()) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder, {"subfolder": FOLDER, "type": "temp"}
