"""HTTP: the pictures of a folder inside the input folder as they will be taught. Files come in by the host's own upload."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from ...seqlora.errors import SeqLoRAError
from ...seqlora.io.picture_list import survey
from ...seqlora.io.pictures import MAX_SIDE
from .. import host
from .library_routes import answered


def pictures(request: web.Request) -> dict[str, Any]:
    asked = request.query.get("resolution", "0")
    if not asked.isdecimal() or not 0 <= int(asked) <= MAX_SIDE:
        raise SeqLoRAError(f"resolution is '{asked}', but must be a whole number up to {MAX_SIDE}")
    return survey(host.input_folder(request.query.get("folder", "")), int(asked) or None)


ROUTES = (("GET", "/seqlora/pictures", answered(pictures)),)
