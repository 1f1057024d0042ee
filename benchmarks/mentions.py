"""How long the list of concepts takes to come after `@`, in a real Chromium with the real frontend.

    .venv/bin/python -m benchmarks.mentions [--concepts 1000]

From the keystroke to the list being there, library already known: median and largest of some texts, in both renderers.
"""

from __future__ import annotations

import argparse
import statistics

from tests.support.editor import RENDERERS, Editor, open_chromium
from tests.support.shelves import shelf
from tests.support.stub import StubServer

TYPED = ("", "c", "co", "concept 9", "concept 99", "9", "zconcept", "concept 500")
MEASURE = """async (texts) => {
    const field = [...document.querySelectorAll('textarea')].find((one) => one.offsetParent && !one.disabled)
    const isThere = () => { const list = document.querySelector('.seqlora-mention'); return Boolean(list) && !list.hidden }
    const type = (text) => {
        field.value = text
        field.setSelectionRange(text.length, text.length)
        field.dispatchEvent(new Event('input', { bubbles: true }))
    }
    const until = async (state) => { while (isThere() !== state) await new Promise((go) => setTimeout(go)) }
    field.focus()
    const times = []
    for (const text of texts) {
        const began = performance.now()
        type(`a photo of @${text}`)
        await until(true)
        document.querySelector('.seqlora-mention').getBoundingClientRect() // laid out
        times.push(performance.now() - began)
        type('')
        await until(false)
    }
    return times
}"""


def measured(stub: StubServer, browser: object, renderer: str, count: int) -> list[float]:
    """Milliseconds."""
    stub.libraries = {"many": shelf("many", *(f"concept {number}" for number in range(count)))}
    editor = Editor(browser, stub.url, renderer)
    try:
        load, prompt = editor.add("SeqLoRA_LoadLibrary", (20, 20), name="many"), editor.add("SeqLoRA_ConceptPrompt", (320, 20))
        connect = "([a, b]) => { app.graph.getNodeById(a).connect(0, app.graph.getNodeById(b), 'library') }"
        editor.page.evaluate(connect, [load, prompt])
        editor.look_at()
        editor.page.evaluate(MEASURE, TYPED)  # the library is asked for once
        return editor.page.evaluate(MEASURE, TYPED * 4)
    finally:
        editor.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, default=1000)
    args = parser.parse_args()
    with StubServer() as stub, open_chromium() as browser:
        for renderer in RENDERERS:
            times = measured(stub, browser, renderer, args.concepts)
            print(
                f"{renderer}: {args.concepts} concepts, median {statistics.median(times):.1f} ms, largest {max(times):.1f} ms"
            )


if __name__ == "__main__":
    main()
