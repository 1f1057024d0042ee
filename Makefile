# Every target sets up what it needs; a fresh machine needs only make, python3 and a network that reaches PyPI.

PYTHON := .venv/bin/python
# Installed first, so that nothing below chooses another. On Linux x86-64 the torch on PyPI brings some gigabytes of CUDA
# libraries; where PyTorch's own server can be reached, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu avoids them.
TORCH ?= torch==2.13.0
# More arguments for pytest: make test ARGS="-k manifold"
ARGS ?=
# Two at a time, one thread each: the tests wait for servers and browsers as long as they compute. A file's tests stay together,
# because they share what is slow to make, and files go in the order of their folders, the slow ones first.
PYTEST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

FONT := /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
INSTALLED := .venv/installed

.PHONY: help setup demo test test-all check check-web mutate screenshots torture micro bench-emoji mmdit results bench-step bench-memory bench-adopt bench-panel clean

help:
	@echo "make demo        teach concepts to the demo model, compose them, write a picture to build/demo"
	@echo "make test        run the tests (tests of the nodes need a ComfyUI, see COMFYUI_PATH in the README)"
	@echo "make test-all    also the tests that take many minutes to try everything"
	@echo "make check       lint, formatting and types"
	@echo "make mutate      break the core on purpose, one line at a time, and show that the tests notice"
	@echo "make screenshots take every picture of the editor anew (needs a ComfyUI and a Chromium)"
	@echo "make torture     kill, fill, spoil and race until something breaks (about half an hour; PARTS=\"kill disk\" for some)"
	@echo "make bench-emoji Emoji-101: SeqLoRA beside its baselines (many hours; goes on where it was stopped)"
	@echo "make results     docs/results.md anew, from the measures in benchmarks/emoji101/results"
	@echo "make mmdit       train the second base model of Emoji-101 (an hour), for make bench-emoji ARGS=\"--architecture mmdit\""
	@echo "make bench-step  cost of a training step beside plain LoRA and the bare model"
	@echo "make bench-memory memory and time of what grows with a library, at the shapes of SDXL and Flux"
	@echo "make bench-adopt LoRAs that were made each by itself, adopted into one library: what is left of each, and what it takes"
	@echo "make bench-panel cost of the open training panel to the training (needs a ComfyUI and Chromium)"
	@echo "make micro       train the demo model and its classifier anew (some hours)"
	@echo "make setup       only the Python environment in .venv"

setup: $(INSTALLED)

demo: $(INSTALLED)
	. tools/env.sh && .venv/bin/seqlora demo --out build/demo

test: $(INSTALLED)
	. tools/env.sh && $(PYTEST) -m "not exhaustive" $(ARGS)

test-all: $(INSTALLED)
	. tools/env.sh && $(PYTEST) $(ARGS)

check: $(INSTALLED) check-web
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy seqlora nodes benchmarks tools demo_model

# The editor's scripts: lint and types. Left out, and said so, where npm is missing or cannot install what that takes.
check-web:
	@if (cd tools/web && { test node_modules/.package-lock.json -nt package-lock.json || npm ci --silent; }) 2>/dev/null; \
	then tools/web/node_modules/.bin/eslint --config tools/web/eslint.config.mjs web \
	     && tools/web/node_modules/.bin/tsc --project tools/web/tsconfig.json; \
	else echo "web/ is not checked: npm is missing or could not install what tools/web/package.json lists"; fi

mutate: $(INSTALLED)
	. tools/env.sh && OMP_NUM_THREADS=1 $(PYTHON) tools/mutate.py

screenshots: $(INSTALLED)
	. tools/env.sh && $(PYTHON) -m tools.screenshots $(ARGS)

torture: $(INSTALLED)
	. tools/env.sh && OMP_NUM_THREADS=1 $(PYTHON) -m tests.robustness $(PARTS) $(ARGS)

bench-emoji: $(INSTALLED)
	. tools/env.sh && OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.emoji101 $(ARGS)
	$(PYTHON) -m benchmarks.emoji101.results

bench-step: $(INSTALLED)
	. tools/env.sh && OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.step_cost $(ARGS)

results: $(INSTALLED)
	$(PYTHON) -m benchmarks.emoji101.results

# Without env.sh, under which freed memory stays in the process and counts.
bench-memory: $(INSTALLED)
	OMP_NUM_THREADS=1 MALLOC_ARENA_MAX=1 $(PYTHON) -m benchmarks.memory $(ARGS)

bench-adopt: $(INSTALLED)
	. tools/env.sh && OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.adopt $(ARGS)

bench-panel: $(INSTALLED)
	. tools/env.sh && OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.panel_cost $(ARGS)

# An interrupted training goes on where it was.
mmdit: $(INSTALLED)
	@test -e $(FONT) || { echo "The emoji font is missing; run: apt-get install fonts-noto-color-emoji" >&2; exit 1; }
	$(PYTHON) demo_model/render_emoji.py
	. tools/env.sh && $(PYTHON) -m demo_model.train_mmdit

# From the font to seqlora/demo/micro.safetensors; an interrupted training goes on where it was.
micro: $(INSTALLED)
	@test -e $(FONT) || { echo "The emoji font is missing; run: apt-get install fonts-noto-color-emoji" >&2; exit 1; }
	$(PYTHON) demo_model/render_emoji.py --ship
	. tools/env.sh && $(PYTHON) demo_model/train_unet.py
	$(PYTHON) demo_model/train_unet.py --ship
	. tools/env.sh && $(PYTHON) demo_model/train_classifier.py

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info build/demo

# Debian and Ubuntu keep venv in a package of its own.
$(INSTALLED): pyproject.toml
	@python3 -c "import ensurepip, venv" 2>/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq \
	     && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv; } \
	|| { echo "Python's venv module is missing; run: apt-get install python3-venv" >&2; exit 1; }
	python3 -m venv .venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@
