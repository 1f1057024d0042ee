"""The picture of a library's report: what its pixels say, against the figures it was given; and the node that makes it."""

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from seqlora.cli.main import main
from seqlora.library.store import Library
from seqlora.report.report import library_report
from seqlora.report.report_image import BAR, CARD, GREY, PALE, QUIET, TEXT, as_png, colour, draw_report, ink, luminance, percent
from tests.support.hosts import HostServer, error_message
from tests.support.prompts import teaching
from tests.support.small import SmallModel, small_library


def made_up(count, names=None):
    """A report with figures that tell every cell and bar from its neighbours."""
    names = names or [f"concept {i}" for i in range(count)]
    table = [[1.0 if i == j else 0.001 * 1.4 ** ((3 * i + j) % 20) for j in range(count)] for i in range(count)]
    entries = [
        {
            "name": name,
            "rank": 4,
            "full_layers": ["a"] if i else [],
            "disturbance_of_output": 0.1 * (i + 1) / count,
            "disturbance_bound_of_output": 0.4 * (i + 1) / count,
        }
        for i, name in enumerate(names)
    ]
    groups = [{"kind": "mlp", "width": 512, "layers": 4, "rank": 4, "used": 0.25, "room": 96}]
    return {
        "library": "my first library",
        "delta": 0.05,
        "layers": 48,
        "concepts": entries,
        "overlap": table,
        "crosstalk": [list(row) for row in zip(*table, strict=True)],
        "capacity": {"concepts": count, "planned": 32, "groups": groups},
    }


def runs_of(picture, rgb):
    """Bounding boxes (left, top, right, bottom) of the touching areas that have exactly this colour, in reading order."""
    mask = np.all(np.asarray(picture) == rgb, axis=2)
    boxes = []
    for top, left in np.argwhere(mask):
        if not mask[top, left]:
            continue  # part of an earlier one
        right, bottom = left, top
        while right + 1 < mask.shape[1] and mask[top, right + 1]:
            right += 1
        while bottom + 1 < mask.shape[0] and mask[bottom + 1, left]:
            bottom += 1
        mask[top : bottom + 1, left : right + 1] = False
        if min(right - left, bottom - top) >= 8:
            boxes.append((int(left), int(top), int(right), int(bottom)))
    return boxes


def cell_colours(picture, count):
    """What the cells of both heatmaps show, (2, count, count, 3): their places follow from the grey diagonals."""
    diagonal = [box for box in runs_of(picture, GREY) if box[2] - box[0] == box[3] - box[1]]
    diagonal = diagonal[: 2 * count]  # the last one is the legend's
    pixels = np.asarray(picture)
    maps = [sorted(d for d in diagonal if (d[0] < picture.width // 2) == first) for first in (True, False)]
    inside = [(left + 3, top + 3) for one in maps for left, top, _, _ in one]
    corners = np.array(inside).reshape(2, count, 2)
    return np.array([[[pixels[y, x] for x in one[:, 0]] for y in one[:, 1]] for one in corners])


@pytest.mark.parametrize("count", [2, 8, 32, 101])
def test_every_cell_has_the_colour_of_its_figure(count):
    report = made_up(count)
    picture = draw_report(report)
    found = cell_colours(picture, count)
    for drawn, key in zip(found, ("overlap", "crosstalk"), strict=True):
        for i in range(count):
            for j in range(count):
                assert tuple(drawn[i][j]) == (GREY if i == j else colour(report[key][i][j])), (key, i, j)
    assert picture.width == 1754 if count <= 32 else 1754 < picture.width < 4096
    assert picture.height < 1.6 * picture.width


@pytest.mark.parametrize("count", [1, 8, 101])
def test_bars_are_as_long_as_their_figures(count):
    report = made_up(count)
    picture = draw_report(report)
    boxes = runs_of(picture, BAR)
    (used,) = [box for box in boxes if box[0] < picture.width // 2]
    half = (picture.width - 3 * 64) // 2
    assert used[2] - used[0] + 1 == pytest.approx(0.25 * half, abs=1)
    expected = sorted(box[2] - box[0] + 1 for box in boxes if box[0] >= picture.width // 2)
    longest = max(expected)
    found = [width for width in expected if width >= 9]
    assert found == pytest.approx([longest * (i + 1) / count for i in range(count)][-len(found) :], abs=1)
    bounds = [box[2] + 1 for box in runs_of(picture, PALE)]
    darks = [box[2] + 1 for box in boxes if box[0] >= picture.width // 2]
    assert max(bounds) - max(darks) == pytest.approx(3 * longest, abs=2)  # the bounds are four times what is expected


def test_colours_get_darker_in_even_steps_and_say_the_figure():
    shares = [0.001 * 10 ** (3 * i / 20) for i in range(21)]
    lightness = [116 * luminance(colour(share)) ** (1 / 3) - 16 for share in shares]  # CIE L*
    steps = -np.diff(lightness)
    assert steps.min() > 0.7 * steps.mean() and steps.max() < 1.4 * steps.mean()
    assert lightness[0] > 93 and lightness[-1] < 22
    assert colour(0.0) == colour(1e-9) == colour(0.001) and colour(1.0) == colour(25.0)


def test_text_stands_out_everywhere():
    def contrast(one, other):
        light, dark = sorted((luminance(one), luminance(other)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    assert min(contrast(TEXT, CARD), contrast(QUIET, CARD)) >= 4.5
    assert all(contrast(ink(colour(10 ** (-i / 50))), colour(10 ** (-i / 50))) >= 4.5 for i in range(160))


@pytest.mark.parametrize("share, told", [(0.0, "0 %"), (4e-16, "0 %"), (0.0123, "1.2 %"), (0.0999, "10 %"), (1.334, "133 %")])
def test_shares_are_told_in_percent(share, told):
    assert percent(share) == told


def test_any_name_can_be_drawn():
    names = ["\u4f01\u9e45", "\U0001f427" * 3, "x" * 64, "e\u0301t\u00e9", "\u0401\u0436"]
    strange, plain = draw_report(made_up(5, names)), draw_report(made_up(5))
    assert strange.size[0] == plain.size[0]
    assert cell_colours(strange, 5).tolist() == cell_colours(plain, 5).tolist()  # no name runs into a map


def test_a_figure_that_there_is_not_is_said_to_be_missing():
    report = made_up(2)
    report["concepts"][0] |= {"disturbance_of_output": None, "disturbance_bound_of_output": None}
    assert len(runs_of(draw_report(report), PALE)) == 1


def test_the_command_draws_the_same(tmp_path):
    library = small_library(tmp_path / "zoo", SmallModel())
    file = tmp_path / "new" / "report.png"
    assert main(["report", str(library.path), "--picture", str(file)]) == 0
    with Image.open(file) as written:
        assert written.format == "PNG" and round(written.info["dpi"][0]) == 150
    found = library_report(Library.open(library.path), {"cat": 1.0, "dog": 1.0})
    assert file.read_bytes() == as_png(draw_report(found))


def pixels(data: bytes) -> np.ndarray:
    with Image.open(BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.host
def test_the_node_draws_and_tells_what_the_core_does(server: HostServer):
    prompt = teaching("report library", steps=2)
    second = {"inputs": prompt["train"]["inputs"] | {"library": ["train", 0], "concept_name": "second", "steps": 3}}
    prompt["again"] = prompt["train"] | second
    prompt["report"] = {"class_type": "SeqLoRA_LibraryReport", "inputs": {"library": ["again", 0]}}
    prompt["text"] = {"class_type": "PreviewAny", "inputs": {"source": ["report", 1]}}
    prompt["save"] = {"class_type": "SaveImage", "inputs": {"images": ["report", 0], "filename_prefix": "report"}}
    outputs = server.run(prompt)
    library = Library.open(server.models_dir / "seqlora" / "report library")
    told = json.loads(outputs["text"]["text"][0])
    computed = library_report(library, {"first": 1.0, "second": 1.0})
    assert told["crosstalk"] == [pytest.approx(row, rel=1e-5) for row in computed["crosstalk"]]
    assert told["capacity"] == computed["capacity"]
    (shown,), (saved,) = outputs["report"]["images"], outputs["save"]["images"]
    for image in (shown, saved):
        query = f"filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}".replace(" ", "%20")
        with Image.open(BytesIO(server.get(f"/view?{query}"))) as picture:
            assert cell_colours(picture.convert("RGB"), 2).tolist() == cell_colours(draw_report(told), 2).tolist()


@pytest.mark.host
def test_an_empty_library_is_one_sentence(server: HostServer):
    prompt = {"library": teaching("empty report library")["library"]}
    prompt["report"] = {"class_type": "SeqLoRA_LibraryReport", "inputs": {"library": ["library", 0]}}
    told = error_message(server.wait(server.post_prompt(prompt)))
    assert told.endswith("Library 'empty report library' has no concepts yet, so there is nothing to report; teach one first.")
