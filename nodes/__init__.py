"""What ComfyUI sees of this pack."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import apply, browse, demo, export, host, library, report, train, upkeep, watching

MODULES = (train, library, report, upkeep, apply, export, demo)
NODES: list[type[io.ComfyNode]] = [node for module in MODULES for node in module.NODES]


class SeqLoRAExtension(ComfyExtension):
    async def on_load(self) -> None:
        host.register_folder()
        host.add_routes((*watching.ROUTES, *browse.ROUTES))

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
