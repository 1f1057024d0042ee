"""What ComfyUI sees of this pack."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import adopt, apply, demo, export, host, library, maintenance, pictures, prompt, regions, report, train, training_options
from .server import bundle_routes, library_routes, picture_routes, training_status

# In this order the editor offers them where a link is dropped: what is wanted most comes first.
MODULES = (prompt, regions, apply, train, training_options, pictures, library, report, adopt, export, maintenance, demo)
NODES: list[type[io.ComfyNode]] = [node for module in MODULES for node in module.NODES]


class SeqLoRAExtension(ComfyExtension):
    async def on_load(self) -> None:
        host.register_folder()
        rooms = (training_status, library_routes, bundle_routes, picture_routes)
        host.add_routes([route for room in rooms for route in room.ROUTES])

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
