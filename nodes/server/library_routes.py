"""HTTP: the libraries and their concepts, for the editor. Requests name libraries and concepts, never a path.

The host looks at the origin of every request before it comes here. Files are read and written by another thread than the
server's.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from ...seqlora.errors import SeqLoRAError
from ...seqlora.library.lock import LibraryLock
from ...seqlora.library.manifest import Record
from ...seqlora.library.store import Library
from ...seqlora.library.thumbnails import decode
from ...seqlora.library.writer import MANIFEST, LibraryWriter
from ...seqlora.settings import method_of
from .. import host
from ..library import tell_changed
from ..report import report_of, report_picture

PICTURES: dict[tuple[Path, str], str] = {}  # by library and hash of the concept's file
KEPT_PICTURES = 2000  # of 11 KB at most
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RefusedError(SeqLoRAError):
    """With another status than 400."""

    def __init__(self, status: int, problem: str, remedy: str = ""):
        super().__init__(problem, remedy)
        self.status = status


def answered(work: Callable[..., Any]) -> Handler:
    """A handler that runs `work` in another thread, with the names in the path and, of a POST, what its body says."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            given = dict(request.match_info)
            if request.method == "POST":
                given |= await _body(request)
            found = await asyncio.get_running_loop().run_in_executor(None, lambda: work(request, **given))
        except SeqLoRAError as error:
            return web.json_response({"error": str(error)}, status=getattr(error, "status", 400))
        return found if isinstance(found, web.Response) else web.json_response(found)

    return handle


async def _body(request: web.Request) -> dict[str, str]:
    data = await request.read()
    try:
        body = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError) as error:
        raise SeqLoRAError("The request's body is no JSON", 'send an object such as {"to": "new name"}') from error
    if not isinstance(body, dict) or not body.keys() <= {"to"} or not all(isinstance(value, str) for value in body.values()):
        raise SeqLoRAError('The request\'s body must be an object such as {"to": "new name"}')
    return body


def opened(name: str) -> Library:
    path = host.library_path(name)
    if not (path / MANIFEST).is_file():
        raise RefusedError(404, f"There is no library '{name}'", "it may have been moved or renamed")
    return Library.open(path)


def found(library: Library, concept: str) -> Record:
    name = library.known_as(concept)
    if name not in library.names:
        raise RefusedError(
            404, f"Library '{library.path.name}' has no concept '{concept}'", "it may have been renamed or removed"
        )
    return library.find(name)


@contextmanager
def writing(name: str) -> Iterator[LibraryWriter[Library]]:
    """A writer for a change that takes no time, unless a training holds the library."""
    library = opened(name)
    lock = LibraryLock(library.path)
    if not lock.acquire(timeout=0):
        raise RefusedError(409, f"A training is writing to library '{name}'", "wait until it ends or cancel it, then try again")
    with library.writing(lock) as writer:
        yield writer


# --- What is told -------------------------------------------------------------------------------------------------------


def libraries(request: web.Request) -> dict[str, Any]:
    return {"libraries": [_line(name) for name in host.library_names()]}


def _line(name: str) -> dict[str, Any]:
    try:
        library = opened(name)
    except SeqLoRAError as error:
        return {"name": name, "concepts": 0, "capacity": 0, "rank": 0, "targets": "", "problem": str(error)}
    about = {"name": name, "concepts": len(library.concepts), "capacity": library.capacity, "rank": library.rank}
    about |= {"targets": library.targets, "problem": ""}
    remark = host.hidden_remark(name)
    return about | ({"remark": remark} if remark else {})


def about(library: Library) -> dict[str, Any]:
    concepts = [_concept(library, record) for record in library.concepts]
    return {
        "name": library.path.name,
        "rank": library.rank,
        "capacity": library.capacity,
        "left": max(0, library.capacity - len(concepts)),
        "targets": library.targets,
        "size": sum(concept["size"] for concept in concepts),
        "concepts": concepts,
    }


def _concept(library: Library, record: Record) -> dict[str, Any]:
    ranks = library.ranks(library.base.layers if library.base else {})
    return {
        "name": record.name,
        "trigger": record.trigger,
        "class_word": record.class_word,
        "rank": max(ranks.values(), default=0),
        "created": record.created.replace("+00:00", "Z"),
        "size": _size(library, record),
        "method": method_of(record.settings),
        "steps": record.metrics.get("steps", 0),
        "thumbnail": bool(_thumbnail(library, record)),
    }


def _size(library: Library, record: Record) -> int:
    try:
        return library.inside(record.file).stat().st_size
    except (OSError, SeqLoRAError):
        return 0


def _thumbnail(library: Library, record: Record) -> str:
    """As a data URI; "" where there is none. Kept, since the headers of a hundred files take a second to read."""
    place = (library.path, record.sha256)
    if place not in PICTURES:
        if len(PICTURES) >= KEPT_PICTURES:
            PICTURES.clear()
        try:
            PICTURES[place] = library.thumbnail(record.name)
        except SeqLoRAError:
            return ""
    return PICTURES[place]


def one_library(request: web.Request, library: str) -> dict[str, Any]:
    return about(opened(library))


def thumbnail(request: web.Request, library: str, concept: str) -> web.Response:
    holder = opened(library)
    uri = _thumbnail(holder, found(holder, concept))
    if not uri:
        raise RefusedError(404, f"Concept '{concept}' has no picture")
    kind, data = decode(uri)
    return _image(request, hashlib.sha256(data).hexdigest()[:16], kind, lambda: data)


def _image(request: web.Request, digest: str, kind: str, draw: Callable[[], bytes]) -> web.Response:
    """A picture that the browser keeps and asks about again; `draw` makes it where it is not kept."""
    headers = {"ETag": f'"{digest}"', "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    if headers["ETag"] in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    return web.Response(body=draw(), content_type=kind, headers=headers)


def report(request: web.Request, library: str) -> dict[str, Any]:
    return report_of(opened(library))


def report_png(request: web.Request, library: str) -> web.Response:
    holder = opened(library)

    def draw() -> bytes:
        buffer = io.BytesIO()
        report_picture(holder).save(buffer, "PNG")
        return buffer.getvalue()

    return _image(request, holder.digest, "image/png", draw)


# --- What is changed ----------------------------------------------------------------------------------------------------


def rename(request: web.Request, library: str, concept: str, to: str = "") -> dict[str, Any]:
    with writing(library) as writer:
        changed = writer.rename(found(writer.library, concept).name, to)
    tell_changed(library)
    return about(changed)


def remove(request: web.Request, library: str, concept: str, to: str = "") -> dict[str, Any]:
    with writing(library) as writer:
        changed = writer.remove(found(writer.library, concept).name)
    tell_changed(library)
    return about(changed)


# Names may have braces, which a plain {name} does not match.
ONE = "/seqlora/libraries/{library:[^/]+}"
CONCEPT = ONE + "/concepts/{concept:[^/]+}"
ROUTES = (
    ("GET", "/seqlora/libraries", answered(libraries)),
    ("GET", ONE, answered(one_library)),
    ("GET", f"{ONE}/report", answered(report)),
    ("GET", f"{ONE}/report.png", answered(report_png)),
    ("GET", f"{CONCEPT}/thumbnail", answered(thumbnail)),
    ("POST", f"{CONCEPT}/rename", answered(rename)),
    ("POST", f"{CONCEPT}/remove", answered(remove)),
)
