"""HTTP: a library as one file, out to whoever it is handed on to, and in from them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

from aiohttp import web

from ...seqlora.errors import SeqLoRAError
from ...seqlora.io.atomic import remedy
from ...seqlora.library import bundle
from ...seqlora.library.store import Library
from .. import host
from ..library import tell_changed
from .library_routes import ONE, about, answered, opened

PACKED = "library-"  # folders of the host's temporary one, by the library's state


def pack(request: web.Request, library: str) -> dict[str, Any]:
    """Writes it where the host's viewer finds it; a file that is there already is of this very state."""
    holder = opened(library)
    folder, viewer = host.preview_folder()
    file = folder / f"{PACKED}{holder.digest}" / f"{holder.path.name}{bundle.SUFFIX}"
    if not file.exists():
        for older in folder.glob(f"{PACKED}*"):  # each is as large as a library
            shutil.rmtree(older, ignore_errors=True)
        bundle.pack(holder, file)
    view = viewer | {"subfolder": f"{viewer['subfolder']}/{file.parent.name}", "filename": file.name}
    return {"name": file.name, "size": file.stat().st_size, "view": view}


async def unpack(request: web.Request) -> web.StreamResponse:
    """The body is the file. It goes to the disk as it comes, and is a library only once it was checked."""
    loop = asyncio.get_running_loop()
    folder = Path(tempfile.mkdtemp(dir=host.preview_folder()[0]))
    name = folder / f"library{bundle.SUFFIX}"  # as sentences about it call it
    try:
        with name.open("wb") as file:
            async for chunk in request.content.iter_chunked(bundle.AT_ONCE):
                await loop.run_in_executor(None, file.write, chunk)
        made = await loop.run_in_executor(None, _unpacked, name)
    except SeqLoRAError as error:
        return web.json_response({"error": str(error)}, status=400)
    except OSError as error:
        return web.json_response({"error": f"Could not write the file ({error.strerror}); {remedy(error)}."}, status=400)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tell_changed(made.path.name)
    return web.json_response(about(made))


def _unpacked(file: Path) -> Library:
    name = bundle.free_name(bundle.name_of(file), host.library_names())
    return bundle.unpack(file, host.new_library_path(name))


ROUTES = (
    ("POST", f"{ONE}/pack", answered(pack)),
    ("POST", "/seqlora/unpack", unpack),
)
