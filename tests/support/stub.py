"""A small server with the real frontend and this pack's web folder, for browser tests where there is no ComfyUI.

What it knows of trainings and libraries is plain state that tests write, and that the pack's routes read and change as the
real ones would. It computes nothing.
"""

from __future__ import annotations

import asyncio
import copy
import io
import json
import tempfile
import threading
import uuid
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import comfyui_frontend_package
from aiohttp import WSMsgType, web
from PIL import Image

from seqlora.io.picture_list import survey
from tests.support.snapshot import SNAPSHOT

PACK = Path(__file__).resolve().parents[2]
STATIC = Path(comfyui_frontend_package.__file__).parent / "static"
LISTS = ("losses", "figures", "previews")

# What the editor asks a server that has no models, no jobs and no templates of its own.
EMPTY = {
    "/users": {"storage": "server", "migrated": True},
    "/system_stats": {"system": {"os": "linux", "comfyui_version": "0.33.0", "argv": []}, "devices": []},
    "/prompt": {"exec_info": {"queue_remaining": 0}},
    "/queue": {"queue_running": [], "queue_pending": []},
    "/jobs": {"jobs": [], "pagination": {"offset": 0, "limit": 0, "total": 0, "has_more": False}},
    "/history": {},
    "/features": {},
    "/settings": {},
    "/embeddings": [],
    "/experiment/models": [],
    "/models": [],
    "/global_subgraphs": {},
    "/node_replacements": {},
}


class StubServer:
    """Runs while it is open, on `url`."""

    def __enter__(self) -> StubServer:
        self.reset()
        self._sockets: set[web.WebSocketResponse] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        port = self._in_loop(self._start())
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._in_loop(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def reset(self) -> None:
        """Forgets all that tests wrote and the browser asked for."""
        self.trainings: dict[str, dict[str, Any]] = {}
        self.libraries: dict[str, dict[str, Any]] = {}
        self.pictures: dict[str, bytes] = {}  # by file name, for /view; any other name gets a plain colour of its own
        self.files: dict[str, str] = {}  # the user's files, workflows among them
        self.asked: list[tuple[str, Any]] = []  # (path, body) of every POST
        self._input = tempfile.TemporaryDirectory(prefix="seqlora-stub-")
        self.input_dir = Path(self._input.name)

    # --- what tests do ----------------------------------------------------------------------------------------------

    def send(self, event: str, data: Any) -> None:
        """An event to every open editor."""
        message = json.dumps({"type": event, "data": data})

        async def to_all() -> None:
            for socket in list(self._sockets):
                await socket.send_str(message)

        self._in_loop(to_all())

    def train(self, node: str, **known: Any) -> str:
        """Starts a training that exists only as its state; returns its id. Nothing is sent before `tell`."""
        state = {"id": uuid.uuid4().hex, "node": node, "workflow": "", "library": "toys", "concept": "rex"}
        state |= {
            "subject": "zorv toy",
            "reused": False,
            "phase": "starting",
            "step": 0,
            "steps": 0,
            "loss": None,
            "rate": None,
            "left": None,
        }
        state |= {"keep": False, "note": "", "verdict": "", "losses": [], "figures": [], "previews": [], "preview_seconds": 0.0}
        self.trainings[state["id"]] = state | known
        return state["id"]

    def tell(self, training: str, **changes: Any) -> None:
        """Changes a training's state and sends the event: what is new of its lists, all of everything else."""
        state = self.trainings[training]
        for name in LISTS:
            state[name] = state[name] + changes.get(name, [])
        state |= {name: value for name, value in changes.items() if name not in LISTS}
        self.send("seqlora.training", state | {name: changes.get(name, []) for name in LISTS})

    # --- what the browser asks --------------------------------------------------------------------------------------

    def _in_loop(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    async def _start(self) -> int:
        api = web.RouteTableDef()
        for path, answer in EMPTY.items():
            api.get(path)(_answers(answer))
        api.get("/ws")(self._socket)
        api.get("/object_info")(self._object_info)
        api.get("/extensions")(self._extensions)
        api.get("/i18n")(self._words)
        api.get("/workflow_templates")(self._templates)
        api.get("/view")(self._view)
        api.get("/userdata")(self._list_files)
        api.get("/userdata/{file}")(self._read_file)
        api.post("/userdata/{file}")(self._write_file)
        api.post("/interrupt")(self._interrupt)
        api.post("/upload/image")(self._upload)
        api.get("/seqlora/pictures")(self._pictures)
        api.get("/seqlora/training")(self._trainings)
        api.post("/seqlora/train/{node}/keep")(self._keep)
        api.get("/seqlora/libraries")(self._libraries)
        api.get("/seqlora/libraries/{library}")(self._library)
        api.get("/seqlora/libraries/{library}/report")(self._report)
        api.get("/seqlora/libraries/{library}/report.png")(self._view)
        api.get("/seqlora/libraries/{library}/concepts/{concept}/thumbnail")(self._view)
        api.post("/seqlora/libraries/{library}/concepts/{concept}/rename")(self._rename)
        api.post("/seqlora/libraries/{library}/concepts/{concept}/remove")(self._remove)

        app = web.Application(middlewares=[self._note])
        for route in api:
            app.router.add_route(route.method, route.path, route.handler)
            app.router.add_route(route.method, "/api" + route.path, route.handler)
        app.router.add_static("/extensions/seqlora", PACK / "web")
        app.router.add_static("/api/workflow_templates/seqlora", PACK / "workflows")
        app.router.add_get("/templates/{path:.*}", _answers([]))
        app.router.add_get("/", self._index)
        app.router.add_static("/", STATIC)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.method == "POST":
            body = await request.text() if request.content_type != "multipart/form-data" else ""
            self.asked.append((unquote(request.path).removeprefix("/api"), json.loads(body) if body.startswith("{") else body))
        return await handler(request)

    async def _index(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets.add(socket)
        try:
            sid = request.query.get("clientId") or uuid.uuid4().hex
            await socket.send_json({"type": "status", "data": {"status": EMPTY["/prompt"], "sid": sid}})
            async for message in socket:
                if message.type == WSMsgType.TEXT:  # the editor's feature flags; ours follow
                    await socket.send_json({"type": "feature_flags", "data": {}})
        finally:
            self._sockets.discard(socket)
        return socket

    async def _object_info(self, request: web.Request) -> web.Response:
        info = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
        info["SeqLoRA_LoadLibrary"]["input"]["required"]["name"][1]["options"] = list(self.libraries)
        return web.json_response(info)

    async def _extensions(self, request: web.Request) -> web.Response:
        roots = ((STATIC, "extensions/**/*.js", ""), (PACK / "web", "**/*.js", "/extensions/seqlora"))
        return web.json_response(
            [f"{at}/{path.relative_to(root).as_posix()}" for root, files, at in roots for path in sorted(root.glob(files))]
        )

    async def _words(self, request: web.Request) -> web.Response:
        words: dict[str, Any] = {}
        for path in sorted((PACK / "locales").glob("*/*.json")):
            read = json.loads(path.read_text(encoding="utf-8"))
            words.setdefault(path.parent.name, {}).update(read if path.stem == "main" else {path.stem: read})
        return web.json_response(words)

    async def _templates(self, request: web.Request) -> web.Response:
        return web.json_response({"seqlora": sorted(path.stem for path in (PACK / "workflows").glob("*.json"))})

    async def _view(self, request: web.Request) -> web.Response:
        name = request.query.get("filename") or request.match_info.get("concept") or request.match_info.get("library", "")
        return web.Response(body=self.pictures.get(name) or _colour(name), content_type="image/png")

    async def _list_files(self, request: web.Request) -> web.Response:
        folder = request.query.get("dir", "") + "/"
        names = [name.removeprefix(folder) for name in self.files if name.startswith(folder)]
        if request.query.get("full_info") == "true":
            return web.json_response(
                [{"path": n, "size": len(self.files[folder + n]), "modified": 0, "created": 0} for n in names]
            )
        return web.json_response(names)

    async def _read_file(self, request: web.Request) -> web.Response:
        name = request.match_info["file"]
        return web.Response(text=self.files[name]) if name in self.files else web.Response(status=404)

    async def _write_file(self, request: web.Request) -> web.Response:
        name = request.match_info["file"]
        self.files[name] = await request.text()
        return web.json_response({"path": name, "size": len(self.files[name]), "modified": 0, "created": 0})

    async def _interrupt(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _upload(self, request: web.Request) -> web.Response:
        """As the host does: a name that is taken by another file gets a number."""
        form = await request.post()
        folder = self.input_dir / form["subfolder"]
        folder.mkdir(exist_ok=True)
        data, name, number = form["image"].file.read(), Path(form["image"].filename), 1
        at = folder / name
        while at.exists() and at.read_bytes() != data:
            at, number = folder / f"{name.stem} ({number}){name.suffix}", number + 1
        at.write_bytes(data)
        return web.json_response({"name": at.name, "subfolder": form["subfolder"], "type": form["type"]})

    async def _pictures(self, request: web.Request) -> web.Response:
        return web.json_response(survey(self.input_dir / request.query["folder"], int(request.query["resolution"]) or None))

    async def _trainings(self, request: web.Request) -> web.Response:
        return web.json_response({"trainings": list(self.trainings.values())})

    async def _keep(self, request: web.Request) -> web.Response:
        node = request.match_info["node"]
        for state in self.trainings.values():
            if state["node"] == node and state["phase"] == "training":
                state["keep"] = True
                return web.json_response(state)
        return _error(404, f"No training runs on node '{node}'; it may have ended.")

    async def _libraries(self, request: web.Request) -> web.Response:
        keys = ("name", "capacity", "rank", "targets", "problem", "remark")
        told = [{key: lib.get(key, "") for key in keys} | {"concepts": len(lib["concepts"])} for lib in self.libraries.values()]
        return web.json_response({"libraries": told})

    async def _library(self, request: web.Request) -> web.Response:
        library = self.libraries.get(request.match_info["library"])
        if library is None:
            return _error(404, f"There is no library '{request.match_info['library']}'.")
        return web.json_response(library | {"left": library["capacity"] - len(library["concepts"])})

    async def _report(self, request: web.Request) -> web.Response:
        return web.json_response({"library": request.match_info["library"]})

    async def _rename(self, request: web.Request) -> web.Response:
        wanted = (await request.json())["to"]
        library = self.libraries[request.match_info["library"]]
        if any(concept["name"] == wanted for concept in library["concepts"]):
            return _error(409, f"The library has a concept '{wanted}' already.")
        for concept in library["concepts"]:
            if concept["name"] == request.match_info["concept"]:
                concept["name"] = wanted
        return await self._changed(request)

    async def _remove(self, request: web.Request) -> web.Response:
        library = self.libraries[request.match_info["library"]]
        library["concepts"] = [c for c in library["concepts"] if c["name"] != request.match_info["concept"]]
        return await self._changed(request)

    async def _changed(self, request: web.Request) -> web.Response:
        message = {"type": "seqlora.library", "data": {"name": request.match_info["library"]}}
        for socket in list(self._sockets):
            await socket.send_json(message)
        return await self._library(request)


def _answers(answer: Any) -> Any:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(copy.copy(answer))

    return handler


def _error(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)


def _colour(name: str) -> bytes:
    """A small picture in a colour that follows from the name."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), tuple(zlib.crc32(name.encode()).to_bytes(4, "big")[:3])).save(file, "PNG")
    return file.getvalue()
