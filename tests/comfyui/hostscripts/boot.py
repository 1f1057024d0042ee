"""What every script that runs inside the host's interpreter imports first: paths, a CPU, and the pack as a package."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[3]
sys.path.insert(0, os.environ["SEQLORA_HOST"])

from comfy.cli_args import args  # noqa: E402

args.cpu = True  # read when comfy.model_management is imported, so before any other comfy module

# The folder of the pack may have any name, and its modules import each other relatively: give it one.
_spec = importlib.util.spec_from_loader("seqlora_pack", None, is_package=True)
_spec.submodule_search_locations = [str(PACK)]
sys.modules["seqlora_pack"] = importlib.util.module_from_spec(_spec)


def report(**figures: object) -> None:
    """The script's answer to the test that ran it."""
    print(json.dumps(figures), flush=True)
