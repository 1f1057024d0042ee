"""Reading: only ordinary files of the size that is expected, and no tensor before the whole header was checked."""

import errno
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save

from seqlora.errors import SeqLoRAError, remedied
from seqlora.io import bounded_json
from seqlora.io.atomic import write_bytes
from seqlora.io.safetensors_file import read_bytes, read_metadata, read_tensors, write_tensors

DTYPES = [getattr(torch, name) for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8".split()]


def made(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


def test_tensors_come_back(tmp_path):
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES}
    tensors |= {"empty": torch.zeros(0, 4), "one": torch.tensor(3.0), "odd": torch.tensor([1, 2, 3], dtype=torch.int8)}
    sha256 = write_tensors(tmp_path / "file", tensors, {"about": "b\u00e4r"})
    found, metadata = read_tensors(tmp_path / "file", 1 << 20, sha256=sha256)
    expected = load_file(tmp_path / "file")
    assert found.keys() == expected.keys() and metadata == {"about": "b\u00e4r"}
    assert all(torch.equal(found[key], expected[key]) and found[key].dtype == expected[key].dtype for key in expected)
    assert read_metadata(tmp_path / "file") == metadata


def test_a_header_of_any_length_is_read(tmp_path):
    """Then tensors do not start where their dtype would like to."""
    (tmp_path / "file").write_bytes(made({"a": entry()}, save({"a": torch.tensor([1.0, 2.0])})[-8:]))
    for pad in range(8):
        text = json.dumps({"a": entry()}).encode() + b" " * pad
        (tmp_path / "file").write_bytes(made(text, torch.tensor([1.0, 2.0]).numpy().tobytes()))
        assert read_tensors(tmp_path / "file", 1000)[0]["a"].tolist() == [1.0, 2.0]


BAD = {
    "nothing": b"",
    "too short": b"\0" * 7,
    "pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}\x94.",
    "longer header than file": made({"a": entry()}, bytes(8), 10**6),
    "huge header": made({"a": entry()}, bytes(8), 2**63),
    "no text": made(b"\xff\xff\xff", b""),
    "no mapping": made([], b""),
    "nested": made(b"[" * 100_000, b""),
    "many values": made(b"[" + b"0," * 600_000 + b"0]", b""),
    "long number": made(b'{"a":' + b"9" * 5000 + b"}", b""),
    "metadata no mapping": made({"__metadata__": []}, b""),
    "metadata no texts": made({"__metadata__": {"a": 1}}, b""),
    "entry no mapping": made({"a": []}, b""),
    "entry with less": made({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "dtype unknown": made({"a": entry(dtype="F31")}, bytes(8)),
    "dtype no text": made({"a": entry(dtype=["F32"])}, bytes(8)),
    "negative shape": made({"a": entry(shape=[-2])}, bytes(8)),
    "true shape": made({"a": entry(shape=[True, 2])}, bytes(8)),
    "fraction": made({"a": entry(shape=[2.0])}, bytes(8)),
    "shape and bytes": made({"a": entry(shape=[3])}, bytes(8)),
    "huge shape": made({"a": entry(shape=[2**62, 2**62])}, bytes(8)),
    "empty and huge": made({"a": entry(shape=[0, 2**62, 2**62], data_offsets=[0, 0])}, b""),
    "huge and empty": made({"a": entry(shape=[2**63, 0], data_offsets=[0, 0])}, b""),
    "backwards": made({"a": entry(data_offsets=[8, 0])}, bytes(8)),
    "outside": made({"a": entry(data_offsets=[8, 16])}, bytes(8)),
    "three offsets": made({"a": entry(data_offsets=[0, 8, 8])}, bytes(8)),
    "overlap": made({"a": entry(), "b": entry()}, bytes(8)),
    "gap": made({"a": entry(), "b": entry(data_offsets=[12, 20])}, bytes(20)),
    "more than the tensors": made({"a": entry()}, bytes(9)),
    "less than the tensors": made({"a": entry()}, bytes(7)),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_header_that_lies_is_refused(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(SeqLoRAError, match=r"file cannot be read \(.*\); restore it from a copy\.$"):
        read_tensors(tmp_path / "file", 1 << 23)


@pytest.mark.parametrize("name", list(BAD)[: list(BAD).index("entry no mapping")])
def test_metadata_of_a_header_that_cannot_be_read_is_refused(tmp_path, name):
    (tmp_path / "file").write_bytes(BAD[name])
    with pytest.raises(SeqLoRAError, match=r"file cannot be read \(.*\); restore it from a copy\.$"):
        read_metadata(tmp_path / "file")


@pytest.mark.parametrize(
    "header",
    [
        json.dumps({"a": entry(more=1)}),
        f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}',
        json.dumps({"a": entry(shape=[1] * 50 + [2])}),
    ],
    ids=["more in an entry", "a tensor twice", "many dimensions"],
)
def test_what_is_odd_but_harmless_is_read(tmp_path, header):
    (tmp_path / "file").write_bytes(made(header.encode(), torch.tensor([1.0, 2.0]).numpy().tobytes()))
    assert read_tensors(tmp_path / "file", 1 << 20)[0]["a"].flatten().tolist() == [1.0, 2.0]


def test_each_tensor_owns_its_memory(tmp_path):
    """One that is kept does not keep the whole file, and may be written to."""
    write_tensors(tmp_path / "file", {"a": torch.zeros(4), "b": torch.zeros(4)})
    found, _ = read_tensors(tmp_path / "file", 1 << 20)
    assert all(tensor.untyped_storage().nbytes() == 16 for tensor in found.values())
    found["a"] += 1
    assert found["b"].sum() == 0


@pytest.mark.parametrize(
    "text", ["9" * 20, "0." + "9" * 40, "[" * 2000, "[" + "0," * 600_000 + "0]", "{", "", "\ufeff1", '["\\ud800"]']
)
def test_json_that_is_bounded(text):
    with pytest.raises(ValueError):
        bounded_json.parse_json(text)
    assert bounded_json.parse_json('{"a": [1, -2.5e3, null, "\\ud83d\\ude00"]}') == {"a": [1, -2500.0, None, "\U0001f600"]}


def test_a_file_that_is_too_large_or_another_is_refused(tmp_path):
    sha256 = write_tensors(tmp_path / "file", {"a": torch.zeros(100)})
    size = (tmp_path / "file").stat().st_size
    assert read_tensors(tmp_path / "file", size, sha256=sha256)
    with pytest.raises(SeqLoRAError, match=f"has {size} bytes, at most {size - 1} were expected"):
        read_tensors(tmp_path / "file", size - 1)
    with pytest.raises(SeqLoRAError, match="was changed since it was written; restore it from a copy"):
        read_tensors(tmp_path / "file", size, sha256="0" * 64)


@pytest.mark.parametrize(
    "make",
    [getattr(os, "mkfifo", os.mkdir), os.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)],
)
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "file")
    for read in (lambda: read_bytes(tmp_path / "file", 100), lambda: read_metadata(tmp_path / "file")):
        with pytest.raises(SeqLoRAError, match="file cannot be read"):
            read()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "none"])
def test_a_file_that_cannot_be(tmp_path, name):
    with pytest.raises(SeqLoRAError, match="cannot be read"):
        read_bytes(tmp_path / name, 100)


@pytest.mark.parametrize(
    "number,words",
    [
        (errno.ENOSPC, "the disk is full, free some space and try again"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EFBIG, "the disk is full"),
        (errno.EROFS, "the folder is read-only, change its permissions or use another one"),
        (errno.EACCES, "the folder is read-only"),
        (errno.EIO, "check the disk's space and permissions"),
    ],
)
def test_a_disk_that_refuses_is_named(tmp_path, monkeypatch, number, words):
    def refuse(handle):
        raise OSError(number, os.strerror(number))

    (tmp_path / "file").write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(SeqLoRAError, match=f"^Could not write .*file .*; {words}"):
        write_bytes(tmp_path / "file", b"after")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"before")]


def test_a_sentence_stays_one_whatever_it_quotes():
    text = str(SeqLoRAError("The name 'a\nb\0\ud800' is " + "x" * 5000 + " wrong."))
    assert text.startswith("The name 'a b ' is xxx") and text.endswith(" wrong.") and len(text) < 1000 and text.encode()


def test_a_sentence_is_a_problem_and_a_remedy():
    error = SeqLoRAError("The file 'a; b.' is gone", "restore it")
    assert (error.problem, error.remedy, str(error)) == (
        "The file 'a; b.' is gone",
        "restore it",
        "The file 'a; b.' is gone; restore it.",
    )
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(SeqLoRAError("Nothing can be done")) == "Nothing can be done."
    assert str(SeqLoRAError("There is no cat", "did you mean hat?")) == "There is no cat; did you mean hat?"
    assert str(error.also("its backup stays")) == "The file 'a; b.' is gone; restore it; its backup stays."
    with pytest.raises(SeqLoRAError, match=r"^The file 'a; b\.' is gone; train anew\.$"), remedied("train anew"):
        raise error
