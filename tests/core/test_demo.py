"""`seqlora demo`, with few concepts and hardly taught: whether it runs to its end, not how well it goes."""

import json

import pytest
from PIL import Image

pytest.importorskip("diffusers")

from seqlora.cli.main import main  # noqa: E402
from seqlora.demo import run_demo as show  # noqa: E402
from seqlora.demo.demo_model import DemoModel  # noqa: E402


def refuse_nan(word: str) -> None:
    raise AssertionError(f"demo.json has {word}, which no other reader of JSON takes")


@pytest.mark.parametrize("count", [1, 2])
def test_few_concepts(count, tmp_path, capsys, monkeypatch):
    for name in ("DEMO_SETTINGS", "PLAIN_SETTINGS"):
        monkeypatch.setattr(show, name, getattr(show, name).with_(steps=2))
    monkeypatch.setattr(show, "SAMPLES", 1)
    monkeypatch.setattr(DemoModel, "generic_captions", DemoModel.generic_captions[:4])
    assert main(["demo", "--concepts", str(count), "--out", str(tmp_path)]) == 0
    assert "nan" not in capsys.readouterr().out
    figures = json.loads((tmp_path / "demo.json").read_text(), parse_constant=refuse_nan)
    assert len(figures["concepts"]) == count
    assert all((figures[method]["crosstalk"] > 0) == (count > 1) for method in ("seqlora", "lora"))
    assert Image.open(tmp_path / "demo.png").width == 150 + count * 128


@pytest.mark.parametrize("count", [-1, 0, 121])
def test_counts_that_cannot_be_are_refused_before_any_work(count, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["demo", "--concepts", str(count), "--out", str(out)]) == 1
    assert capsys.readouterr().err.strip().endswith("ask for 1 to 120.") and not out.exists()
