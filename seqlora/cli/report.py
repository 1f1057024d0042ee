"""`seqlora compose` and `seqlora report`: what concepts do to each other."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import SeqLoRAError
from ..io.atomic import write_bytes
from ..library.store import Library
from ..lora.compose import parse_selection
from .arguments import Command, real, with_library


def add_commands(command: Command) -> None:
    with_library(command("compose", compose, "show what summing concepts gives: ranks, overlap, crosstalk"))

    sub = command("report", report, "bound how much each concept suffers from the others; overlap and crosstalk")
    with_library(sub)
    sub.add_argument("--delta", type=real(0, 1), default=0.05, help="chance that a bound fails")
    sub.add_argument("--sub-gaussian-constant", type=real(0), default=1.0, help="of the layers' inputs; 1 is a Gaussian's")
    sub.add_argument("--json", type=Path, help="also write everything to this file")
    sub.add_argument("--picture", type=Path, help="also draw it, as a PNG")


def compose(args: argparse.Namespace) -> None:
    """What summing these concepts gives: ranks, overlap and crosstalk."""
    from ..method import metrics

    library = Library.open(args.library)
    selection = parse_selection("\n".join(args.concepts), library.names)
    if not selection:
        raise SeqLoRAError("No concept is selected", "name at least one, or '*' for all")
    concepts = [library.load(name) for name in selection]
    composed = library.compose(selection)
    across, within = metrics.basis_error(concepts)
    table = metrics.crosstalk(concepts, [library.moments(name) for name in selection])
    print(f"{len(concepts)} concepts on {len(composed)} layers, rank {max(p.up.shape[1] for p in composed.values())} in all")
    print(f"largest entry of B_i'B_j {across:.1e}, largest error of B_i'B_i = I {within:.1e}")
    print("crosstalk: how much a concept (row) acts on what another (column) sees, as a share of that one's own change")
    width = max(len(name) for name in selection)
    for name, row in zip(selection, table.tolist(), strict=True):
        print(f"{name:>{width}}  " + " ".join(f"{value:6.3f}" for value in row))


def report(args: argparse.Namespace) -> None:
    """What the concepts do to themselves, each other and the model; docs/theory.md says what the columns mean."""
    from ..report.report import library_report
    from ..report.report_image import as_png, draw_report

    library = Library.open(args.library)
    selection = parse_selection("\n".join(args.concepts), library.names)
    found = library_report(library, selection, args.delta, args.sub_gaussian_constant)
    columns = {
        "captured": "captured_energy",
        "disturbed": "disturbance",
        "bound": "disturbance_bound",
        "of output": "disturbance_of_output",
        "its bound": "disturbance_bound_of_output",
        "prior": "prior_disturbance",
        "change": "change_norm",
    }
    width = max(len(name) for name in selection)
    print(f"{len(selection)} concepts, {found['layers']} layers; bounds at probability {1 - args.delta:g} for inputs as stored")
    print(f"{'':>{width}}  rank " + " ".join(f"{title:>9}" for title in columns) + "  full  worst layer, its bound of output")
    for entry in found["concepts"]:
        values = (entry[key] for key in columns.values())
        cells = " ".join(f"{'-' if value is None else format(value, '.4f'):>9}" for value in values)
        worst = f"{entry['worst_layer']} {entry['worst_layer_bound_of_output']:.4f}" if entry["worst_layer"] else "none"
        print(f"{entry['name']:>{width}}  {entry['rank']:>4} {cells}  {len(entry['full_layers']):>4}  {worst}")
    for title in ("overlap", "crosstalk"):
        print(f"{title} of a concept (row) with another (column)")
        for name, row in zip(selection, found[title], strict=True):
            print(f"{name:>{width}}  " + " ".join(f"{value:6.3f}" for value in row))
    if args.json:
        write_bytes(args.json, json.dumps(found, indent=1, ensure_ascii=False).encode())
    if args.picture:
        write_bytes(args.picture, as_png(draw_report(found)))
