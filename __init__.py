WEB_DIRECTORY = "./web"


# The import waits until ComfyUI asks, so that linters and tests can import this folder where no ComfyUI exists.
async def comfy_entrypoint():
    from .nodes import SeqLoRAExtension

    return SeqLoRAExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
