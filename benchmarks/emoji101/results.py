"""docs/results.md and its pictures, from the runs' measures that are filed beside this file. Nothing here is typed by hand.

python -m benchmarks.emoji101.results
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import records, tables
from .bars import bars
from .found import Found, read
from .methods import BATCH_SIZE, CAPACITY, KEPT, METHODS, RANK, STEPS, TUNING
from .model import LOADERS
from .tables import DEFAULT

ROOT = Path(__file__).parents[2]


def largest(paths: Iterable[Path]) -> tuple[int, dict[str, Any]]:
    """Of files named after the number of concepts they are about, the one with the most, and that number; 0 without any."""
    numbered = {int(path.stem.rpartition("-")[2]): path for path in paths}
    count = max(numbered, default=0)
    return count, records.read(numbered[count]) if count else {}


def page(folder: Path, pictures: Path) -> str:
    """The page's text; writes its pictures into the folder."""
    first, second = LOADERS
    parts = sections(folder, first, pictures)
    parts["second"] = "Not run yet with this version of the code."
    if DEFAULT in read(folder, second):
        parts["second"] = fill("template_second_model.md", {**sections(folder, second, pictures), "other": parts["base"]})
    return fill("template.md", parts)


def sections(folder: Path, architecture: str, pictures: Path) -> dict[str, str]:
    """What the page's templates ask for by name, of one base model. What depends on how many concepts a run taught
    compares runs of the number that all methods were run to."""
    from .figures import draw_figures

    runs, found = records.read_runs(folder, architecture), read(folder, architecture)
    sizes = tables.sizes_of(found)
    size = max((n for n in sizes if n <= 32), default=sizes[0])
    common = read(folder, architecture, size)
    measured = [seed for f in found.values() for seed in f.seeds]
    _, steps = largest((folder / architecture).glob("cost-*.json"))
    parts_of, lost = largest((folder / architecture).glob("parts-*.json"))
    tuned = {key: records.read(records.tuning_path(folder, architecture, key)) for key in METHODS}
    made = {
        "bars": bars(found, common, size, steps),
        "against_alone": tables.against_alone(found),
        "identity": tables.identity(found, size),
        "ahead": tables.ahead(common, [n for n in sizes if n in (16, size)]),
        "naming": tables.naming(common, size),
        "parts": tables.weaker(lost.get("rows", [])),
        "tuning": tables.tuning(found, size, tuned),
        "times": tables.by_time(common, size),
        "together": tables.together(common),
        "cost": tables.cost(found),
        "bound": tables.bound(common),
        "convergence": tables.convergence(found),
        "runs": tables.runs(runs),
    }
    return {
        **{name: "\n".join(lines) for name, lines in made.items()},
        "machine": "; ".join(sorted({run["machine"] for run in runs})),
        "commit": ", ".join(sorted({run["commit"] for run in runs})),
        "base": f"{measured[0]['prior of the base']:.1%}",
        "steps": str(STEPS),
        "batch": str(BATCH_SIZE),
        "rank": str(RANK),
        "capacity": str(CAPACITY),
        "kept": f"{KEPT:.0%}",
        "seeds": str(max(len(f.seeds) for f in found.values())),
        "tuning_concepts": str(TUNING),
        "common": str(size),
        "pictures": "\n\n".join(draw_figures(found, common, pictures, architecture)),
        "parts_of": str(parts_of or "not measured yet"),
        "outdated": _outdated(found),
    }


def _outdated(found: Mapping[str, Found]) -> str:
    """Which rows are of other code, in a sentence."""
    old = [method.title for method in found.values() if method.outdated]
    return (
        f"Rows of an earlier version of the code: {', '.join(old)}." if old else "No row is of an earlier version of the code."
    )


def fill(template: str, parts: Mapping[str, str]) -> str:
    text = (Path(__file__).parent / template).read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text


NOTHING = """# Emoji-101: concepts taught one after another, summed

No run of this version has been filed yet: `make bench-emoji` files what its runs measure in `benchmarks/emoji101/results`, and
`python -m benchmarks.emoji101.results` writes this page from it. What was seen before measures were kept is on
[a page of an earlier version](results-earlier.md).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="folder", type=Path, default=records.FOLDER, help="where the measures are")
    args = parser.parse_args()
    path = ROOT / "docs" / "results.md"
    filed = DEFAULT in read(args.folder, next(iter(LOADERS)))
    path.write_text(page(args.folder, ROOT / "docs" / "pictures") if filed else NOTHING, encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
