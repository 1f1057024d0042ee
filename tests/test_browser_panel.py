"""The training panel in a real Chromium against the real frontend."""

from __future__ import annotations

import pytest

from tests.browser.editor import Editor
from tests.browser.stub import StubServer


def test_nothing(editor: Editor, stub: StubServer):
    editor.add("SeqLoRA_TrainConcept")
