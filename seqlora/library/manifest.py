"""What a library says about itself: the manifest, `library.json`.

The header of every concept file is such a text too, of a library with that one concept, so that a library can be rebuilt from
its files. Whatever is read is checked field by field; nothing in it is believed to be what we wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import SeqLoRAError
from ..io.bounded_json import parse_json
from ..io.names import checked_name, collision_key
from ..lora.targets import TARGETS

FORMAT = 1
MAX_BYTES = 8 << 20
MAX_LAYERS = 20_000
MAX_WIDTH = 1 << 20
MAX_TEXT = 1000  # characters of a trigger, a class word, a layer's name
MAX_DEPTH = 64  # of transformer blocks in one place of a UNet


class UnknownFormatError(SeqLoRAError):
    """Written by another version."""


@dataclass(frozen=True)
class Base:
    """The model that a library belongs to."""

    layout: Mapping[str, Any]  # how its layers are named elsewhere, see keys.py; "family" is "unet", "sd3", "flux" or "other"
    layers: Mapping[str, Sequence[int]]  # name -> [m, n]
    fingerprint: str = ""  # of some of its weights; differs between fine-tunes of one family

    @property
    def family(self) -> str:
        return str(self.layout["family"])


@dataclass(frozen=True)
class Record:
    """A concept as the manifest lists it and its file's header repeats it, but for the file's own hash, which is "" there.

    Its ranks follow from the library's, see `Library.ranks`.
    """

    id: int  # larger than those of the concepts it was taught beside
    name: str
    trigger: str
    class_word: str
    file: str
    sha256: str
    moments_sha256: str
    created: str
    request: str  # hash of everything that was asked for; the same request finds this concept again
    full_layers: Sequence[str]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """What stands for the concept in a prompt: trigger and class word."""
        return f"{self.trigger} {self.class_word}".strip()


@dataclass(frozen=True)
class Manifest:
    """What a library says about itself."""

    rank: int
    capacity: int
    targets: str
    base: Base | None = None
    prior_sha256: str = ""  # of the model's own moments, once they were measured
    concepts: tuple[Record, ...] = ()

    def to_bytes(self, indent: int | None = 1) -> bytes:
        """As text. Raises SeqLoRAError for what could not be read again."""
        data = json.dumps({"format": FORMAT, **asdict(self)}, indent=indent, ensure_ascii=False).encode(errors="replace")
        try:
            parse(data)
        except ValueError as error:
            raise SeqLoRAError(f"The library cannot be listed ({error})", "nothing was changed") from error
        return data


def parse(data: bytes | bytearray | str) -> Manifest:
    """Raises ValueError, UnknownFormatError among them."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    found = _mapping(parse_json(data), "it")
    if "format" in found and found["format"] != FORMAT:
        raise UnknownFormatError(f"has format {str(found['format'])[:20]}", f"this version reads {FORMAT}. Update the pack")
    wanted = {"format", *(entry.name for entry in fields(Manifest))}
    if found.keys() != wanted:
        raise ValueError(f"field {min(found.keys() ^ wanted)!r} is missing or unknown")
    _check(isinstance(found["targets"], str) and found["targets"] in TARGETS, "targets")
    base = _base(found["base"]) if found["base"] is not None else None
    entries = _list(found["concepts"], "concepts")
    _check(base is not None or not entries, "base")
    concepts = tuple(_record(entry, base) for entry in entries)
    for what in ("id", "name", "file"):
        values = [collision_key(str(getattr(record, what))) for record in concepts]
        _check(len(set(values)) == len(values), f"{what} of two concepts")
    return Manifest(
        rank=_number(found["rank"], "rank", 1, MAX_WIDTH),
        capacity=_number(found["capacity"], "capacity", 1, MAX_WIDTH),
        targets=found["targets"],
        base=base,
        prior_sha256=_text(found["prior_sha256"], "prior_sha256"),
        concepts=concepts,
    )


def _base(value: Any) -> Base:
    found = _mapping(value, "base")
    _check(found.keys() == {"layout", "layers", "fingerprint"}, "base")
    layers = _mapping(found["layers"], "layers")
    _check(0 < len(layers) <= MAX_LAYERS, "layers")
    for name, shape in layers.items():
        _text(name, "layers")
        _check(len(_list(shape, "layers")) == 2, f"layer {name}")
        for width in shape:
            _number(width, f"layer {name}", 1, MAX_WIDTH)
    return Base(_layout(found["layout"]), layers, _text(found["fingerprint"], "fingerprint"))


def _layout(value: Any) -> Mapping[str, Any]:
    """As keys.py describes it."""
    found = _mapping(value, "layout")
    unet = found.get("family") == "unet"
    _check(found.keys() == ({"family", "down", "mid", "up", "label_emb"} if unet else {"family"}), "layout")
    _text(found["family"], "family")
    if unet:
        levels = [_list(level, "layout") for side in ("down", "up") for level in _list(found[side], "layout")]
        _check(len(levels) <= MAX_DEPTH and all(len(level) <= MAX_DEPTH for level in levels), "layout")
        for depth in [*(depth for level in levels for depth in level), found["mid"] or 0]:
            _number(depth, "layout", 0, MAX_DEPTH)
        _check(isinstance(found["label_emb"], bool), "layout")
    return found


def _record(value: Any, base: Base | None) -> Record:
    found = _mapping(value, "a concept")
    _check(found.keys() == {entry.name for entry in fields(Record)}, "a concept")
    _number(found["id"], "id", 1, 10**9)
    for what in ("name", "trigger", "class_word", "file", "sha256", "moments_sha256", "created", "request"):
        _text(found[what], what)
    _check(checked_name(found["name"], "name of a concept") == found["name"], "name")
    layers = _list(found["full_layers"], "full_layers")
    _check(all(isinstance(layer, str) and base is not None and layer in base.layers for layer in layers), "full_layers")
    for what in ("settings", "metrics"):
        for key, entry in _mapping(found[what], what).items():
            _check(_plain(entry) or (isinstance(entry, list) and all(map(_plain, entry))), f"{what} {key[:100]}")
    return Record(**found)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _mapping(value: Any, what: str) -> dict[str, Any]:
    _check(isinstance(value, dict), what)
    return value


def _list(value: Any, what: str) -> list[Any]:
    _check(isinstance(value, list), what)
    return value


def _text(value: Any, what: str) -> str:
    _check(isinstance(value, str) and len(value) <= MAX_TEXT, what)
    return value


def _number(value: Any, what: str, least: int, most: int) -> int:
    _check(type(value) is int and least <= value <= most, what)
    return value


def _check(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"{what} is not what it must be")
