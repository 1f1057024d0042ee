"""Work is never lost: a training that was stopped anywhere goes on bit for bit, or is kept as it is."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from seqlora.cli.main import main
from seqlora.errors import SeqLoRAError
from seqlora.library.store import Library
from seqlora.settings import method_settings
from seqlora.training.checkpoint import FOLDER
from seqlora.training.progress import run_to_end
from seqlora.training.result import describe_result, thinned
from seqlora.training.train import train_steps
from tests.support.small import QUICK, SmallDenoiser, SmallModel, contents, small_request

STEPS = 12
PLAIN = QUICK.with_(steps=STEPS, batch_size=2, interference_weight=0.0, co_training="modular", basis_init="random")
SCHEDULES = {
    "joint": QUICK.with_(steps=STEPS, batch_size=2),
    "alternating": QUICK.with_(steps=STEPS, batch_size=2, schedule="alternating", inner_steps=2),
    "finite_difference": QUICK.with_(steps=STEPS, batch_size=2, schedule="finite_difference", inner_steps=1),
    "joint, nothing beside it": PLAIN,
    "cumulative": QUICK.with_(steps=STEPS, co_training="cumulative"),
    "o-lora": method_settings("o-lora", QUICK.with_(steps=STEPS)),
    "frozen": method_settings("frozen contrastive", QUICK.with_(steps=STEPS)),
}


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A library of two concepts with room for more."""
    library = Library.create(tmp_path_factory.mktemp("models") / "pets", 4, 8, "attention and mlp")
    for seed, name in enumerate(("cat", "dog")):
        library = run_to_end(train_steps(library, small_request(name, seed), QUICK, SmallModel())).library
    return library.path


@pytest.fixture
def library(pets, tmp_path):
    shutil.copytree(pets, tmp_path / "pets")
    return Library.open(tmp_path / "pets")


def bird(library, settings, model=None, **options):
    return train_steps(library, small_request("bird", 2), settings, model or SmallModel(), **options)


def stop_at(steps, step):
    """Runs until this many training steps are done and closes the generator; the last step that was told."""
    for progress in steps:
        if progress.phase == "training" and progress.step >= step and progress.loss is not None:
            steps.close()
            return progress.step
    raise AssertionError("it ended before")


def result(taught):
    record = taught.record
    pairs = taught.library.load(record.name)
    moments = taught.library.moments(record.name)
    return pairs, taught.losses, moments.output_energy, {name: m.sketch for name, m in moments.by_input.items()}


def identical(one, other):
    (pairs, losses, energy, sketches), (pairs_2, losses_2, energy_2, sketches_2) = result(one), result(other)
    return (
        all(torch.equal(a, b) for name in pairs for a, b in zip(pairs[name], pairs_2[name], strict=True))
        and list(losses) == list(losses_2)
        and energy == energy_2
        and all(torch.equal(sketches[name], sketches_2[name]) for name in sketches)
    )


def files_in(library, suffix=".safetensors"):
    return sorted(path for path in (library.path / FOLDER).glob(f"*{suffix}") if path.stem != "prior")


def without_checkpoints(library):
    return {name: data for name, data in contents(library.path).items() if not name.startswith(FOLDER)}


@pytest.fixture(scope="module")
def straight(pets, tmp_path_factory):
    """What a training that is never stopped gives, once for each schedule."""
    taught = {}

    def once(schedule):
        if schedule not in taught:
            path = tmp_path_factory.mktemp("straight") / "pets"
            shutil.copytree(pets, path)
            taught[schedule] = run_to_end(bird(Library.open(path), SCHEDULES[schedule]))
        return taught[schedule]

    return once


class Interrupt(BaseException):
    """As the host's own, which it raises inside of a forward."""


class Interrupted(SmallDenoiser):
    """Raises at one of the training's passes."""

    def __init__(self, at, error):
        super().__init__()
        self.passes, self.at, self.error = -1, at, error  # the first that is differentiated is the trace's

    def __call__(self, x, sigma, cond):
        self.passes += torch.is_grad_enabled()
        if self.passes == self.at:
            raise self.error
        return super().__call__(x, sigma, cond)


def interrupted(at, error):
    model = SmallModel()
    model.denoiser = Interrupted(at, error)
    return model


# -- going on


@pytest.mark.parametrize("cut", [1, 5, STEPS])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_resumed_training_ends_as_if_it_had_never_stopped(library, straight, schedule, cut):
    before = contents(library.path)
    stopped_at = stop_at(bird(library, SCHEDULES[schedule]), cut)
    assert without_checkpoints(library) == before and len(files_in(library)) == 1
    told = []
    resumed = run_to_end(bird(library, SCHEDULES[schedule]), told.append)
    assert identical(straight(schedule), resumed)
    assert resumed.report.resumed_at == stopped_at and resumed.report.steps == STEPS
    assert {p.phase for p in told} == {"training", "saving"} and [p.step for p in told][:1] == [stopped_at]
    assert told[0].note == f"Goes on from step {stopped_at}."
    assert not (library.path / FOLDER).exists()


def test_the_time_reported_is_that_of_all_sessions(library):
    first = bird(library, SCHEDULES["joint"])
    next(first)
    time.sleep(3.0)  # longer than the second session takes
    stop_at(first, 2)
    assert run_to_end(bird(library, SCHEDULES["joint"])).report.seconds >= 3.0


@pytest.mark.parametrize(
    ("schedule", "at"), [("joint", 3), ("alternating", 3), *(("finite_difference", at) for at in range(2, 7))]
)
def test_a_pass_that_is_interrupted_loses_its_step_only(library, straight, schedule, at):
    """Finite differences: a step of 1 pass, then one of 4, in which A is moved away and put back."""
    with pytest.raises(Interrupt):
        run_to_end(bird(library, SCHEDULES[schedule], interrupted(at, Interrupt())))
    done = max(step for step in ([1, 5] if schedule == "finite_difference" else range(at)) if step < at)
    resumed = run_to_end(bird(library, SCHEDULES[schedule]))
    assert resumed.report.resumed_at == done and identical(straight(schedule), resumed)


def test_stopped_again_and_again(library, straight):
    for step in (1, 2, 2, 7, 7, 11):
        stop_at(bird(library, SCHEDULES["joint"]), step)
        assert len(files_in(library)) == 1
    assert identical(straight("joint"), run_to_end(bird(library, SCHEDULES["joint"])))


def test_the_first_concept_of_a_library(tmp_path):
    """G was measured but belongs to no concept yet; it is not measured again, nor is the library bound to the model."""
    results = []
    for name in ("straight", "stopped"):
        library = Library.create(tmp_path / name, 4, 8, "attention and mlp")
        if name == "stopped":
            before = contents(library.path)
            stop_at(bird(library, SCHEDULES["joint"]), 3)
            assert without_checkpoints(library) == before and Library.open(library.path).base is None
            told = []
            stopped = bird(library, SCHEDULES["joint"].with_(seed=1))  # another request takes G over, too
            measured = list(takewhile(lambda progress: progress.phase == "measuring", stopped))
            assert len(measured) == 24 and stopped.close() is None  # moments of its own pictures, two at a time
        results.append(run_to_end(bird(library, SCHEDULES["joint"]), told.append if name == "stopped" else lambda _: None))
    assert identical(*results) and {p.phase for p in told} == {"training", "saving"}
    assert results[0].library.prior().output_energy == results[1].library.prior().output_energy
    assert not (tmp_path / "straight" / FOLDER).exists()


def test_bf16_goes_on_as_well(library, tmp_path):
    def model():
        small = SmallModel()
        small.denoiser = SmallDenoiser(dtype=torch.bfloat16)
        return small

    shutil.copytree(library.path, tmp_path / "other" / "pets")
    one = run_to_end(bird(Library.open(tmp_path / "other" / "pets"), QUICK, model()))
    stop_at(bird(library, QUICK, model()), 6)
    assert identical(one, run_to_end(bird(library, QUICK, model()))) and one.report.precision == "bfloat16"


def test_minutes_pass(library):
    for minutes, saved in ((1e-9, True), (0, False), (60, False)):
        steps = bird(library, QUICK.with_(seed=int(saved)), checkpoint_minutes=minutes)
        for progress in steps:
            if progress.phase == "training" and progress.step == 3:
                break
        assert bool(files_in(library)) == saved
        steps.close()
        for path in files_in(library):
            path.unlink()


# -- what is not gone on from


def spoilt(change):
    def spoil(path, library):
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)

    return spoil


def other_format(path, library):
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        about_it = json.loads(file.metadata()["seqlora"])
    from seqlora.training import bound_file

    text = json.dumps(about_it | {"format": 99})
    save_file(tensors, path, {"seqlora": text, "digest": bound_file._digest(text, tensors)})


def another_concept(path, library):
    run_to_end(train_steps(library, small_request("fish", 9), QUICK, SmallModel()))


def flip(data):
    data[-3] ^= 1


def cut(data):
    del data[-100:]


UNFIT = {
    "a bit flipped": (spoilt(flip), "is damaged"),
    "cut off": (spoilt(cut), ""),
    "empty": (lambda path, library: path.write_bytes(b""), ""),
    "no checkpoint": (lambda path, library: save_file({"x": torch.zeros(2)}, path), "is damaged"),
    "another version": (other_format, "was written by another version"),
    "another concept was taught": (another_concept, "is of another state of the library"),
}


@pytest.mark.parametrize(("spoil", "sentence"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_set_aside(library, tmp_path, spoil, sentence):
    stop_at(bird(library, SCHEDULES["joint"]), 4)
    (path,) = files_in(library)
    spoil(path, library)
    library, data = Library.open(library.path), path.read_bytes()
    shutil.copytree(library.path, tmp_path / "other" / "pets", ignore=shutil.ignore_patterns(FOLDER))
    anew = run_to_end(bird(Library.open(tmp_path / "other" / "pets"), SCHEDULES["joint"]))
    told = []
    taught = run_to_end(bird(library, SCHEDULES["joint"]), told.append)
    (note,) = [p.note for p in told if p.note]
    assert str(path) in note and sentence in note and note.endswith("; it was set aside and the training starts anew.")
    assert taught.report.note == note and taught.report.resumed_at is None
    assert identical(anew, taught)
    assert path.with_suffix(".set-aside").read_bytes() == data and not path.exists()


def test_another_request_does_not_take_it(library):
    stop_at(bird(library, SCHEDULES["joint"]), 4)
    told = []
    taught = run_to_end(bird(library, SCHEDULES["joint"].with_(seed=1)), told.append)
    assert taught.report.resumed_at is None and not any(p.note for p in told) and len(files_in(library)) == 1


def test_replacing_a_concept_is_another_training_than_adding_one(library):
    """The request is the same, but what is taught beside it is not."""
    stop_at(bird(library, SCHEDULES["joint"]), 4)
    told = []
    lesson = small_request("dog", 2, trigger="zyxbird")
    taught = run_to_end(train_steps(library, lesson, SCHEDULES["joint"], SmallModel(), replace=True), told.append)
    assert "is of another state of the library" in taught.report.note and taught.report.resumed_at is None


def test_a_checkpoint_of_a_finished_concept_goes_away(library):
    """What a process leaves that dies between filing the concept and deleting its checkpoint."""
    stop_at(bird(library, SCHEDULES["joint"]), 4)
    (path,) = files_in(library)
    data = path.read_bytes()
    library = run_to_end(bird(library, SCHEDULES["joint"])).library
    path.parent.mkdir()
    path.write_bytes(data)
    (path.parent / f".{path.name}.123.tmp").write_bytes(data[:100])  # while it wrote
    assert run_to_end(bird(library, SCHEDULES["joint"])).reused and not path.parent.exists()


# -- what goes wrong


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(library):
    model = SmallModel()

    class Failing(Interrupted):
        def __call__(self, x, sigma, cond):
            found = SmallDenoiser.__call__(self, x, sigma, cond)
            self.passes += torch.is_grad_enabled()
            return found * float("nan") if self.passes == self.at else found

    model.denoiser = Failing(6, None)
    sentence = r"^The loss was no longer a number at step 6; lower learning_rate .* its checkpoint of step 5 stays\.$"
    with pytest.raises(SeqLoRAError, match=sentence):
        run_to_end(bird(library, QUICK, model, checkpoint_minutes=1e-9))
    assert run_to_end(bird(library, QUICK)).report.resumed_at == 5


def test_values_that_are_no_numbers_are_not_kept(library):
    """The gradient overflows in a step whose loss is still finite; closing then must not write over a good checkpoint."""
    stop_at(bird(library, SCHEDULES["joint"]), 4)
    (path,) = files_in(library)
    good = path.read_bytes()
    model = SmallModel()

    class Overflowing(Interrupted):
        def __call__(self, x, sigma, cond):
            found = super().__call__(x, sigma, cond)
            if found.requires_grad and self.passes == 2:
                found.register_hook(lambda gradient: gradient * float("inf"))
            return found

    model.denoiser = Overflowing(99, None)
    stop_at(bird(library, SCHEDULES["joint"], model), 6)
    assert path.read_bytes() == good


def test_memory_that_runs_out_on_the_way(library):
    """A real failure of the allocator."""
    model = SmallModel()

    class Hungry(Interrupted):
        def __call__(self, x, sigma, cond):
            self.passes += torch.is_grad_enabled()
            if self.passes == 5:
                torch.empty(1 << 60, dtype=torch.uint8)
            return SmallDenoiser.__call__(self, x, sigma, cond)

    model.denoiser = Hungry(0, None)
    with pytest.raises(SeqLoRAError, match=r"ran out of memory; lower batch_size .*; its checkpoint of step 4 stays\.$"):
        run_to_end(bird(library, QUICK, model))
    assert run_to_end(bird(library, QUICK)).report.resumed_at == 4


def test_a_model_without_gradients(library):
    class Stiff(SmallDenoiser):
        def __call__(self, x, sigma, cond):
            with torch.no_grad():
                return super().__call__(x, sigma, cond)

    model = SmallModel()
    model.denoiser = Stiff()
    before = contents(library.path)
    with pytest.raises(SeqLoRAError, match="^This model runs without gradients here, so it cannot be taught;"):
        run_to_end(bird(library, QUICK, model))
    assert contents(library.path) == before


def test_a_disk_that_refuses_does_not_stop_the_training(library):
    (library.path / FOLDER).write_text("a file where the folder should be")
    told = []
    taught = run_to_end(bird(library, QUICK, checkpoint_minutes=1e-9), told.append)
    assert taught.library.names == ["cat", "dog", "bird"]
    assert {p.note[:15] for p in told if p.note} == {"Could not write"}


# -- keeping what there is


def test_keep_files_the_concept_as_it_is(library, tmp_path):
    settings = QUICK.with_(steps=40)
    told = []

    def tell(progress):
        told.append(progress)
        return "keep" if progress.phase == "training" and progress.step >= 7 else None

    kept = run_to_end(bird(library, settings), tell)
    assert [p.step for p in told if p.phase == "training"] == [1, 2, 3, 4, 5, 6, 7]
    assert kept.library.names == ["cat", "dog", "bird"] and not (library.path / FOLDER).exists()
    assert kept.report.steps == kept.report.ended_early_at == 7 == len(kept.losses)
    assert kept.record.metrics["ended_early_at"] == 7 and kept.record.settings["steps"] == 40
    assert max(float(pair.up.abs().max()) for pair in kept.library.load("bird").values()) > 0

    again = run_to_end(bird(kept.library, settings))  # the same request is content with it
    assert again.reused and again.report.ended_early_at == 7 and again.record == kept.record


def test_keep_takes_the_step_in_whole(library, tmp_path):
    """What is kept at step 5 is what going on from step 5 starts with."""
    shutil.copytree(library.path, tmp_path / "pets 2")
    other = Library.open(tmp_path / "pets 2")
    kept = run_to_end(bird(library, SCHEDULES["joint"]), lambda p: "keep" if p.phase == "training" and p.step == 5 else None)
    stop_at(bird(other, SCHEDULES["joint"]), 5)
    went_on = run_to_end(bird(other, SCHEDULES["joint"]), lambda p: "keep" if p.phase == "training" else None)
    assert went_on.report.ended_early_at == 6 and list(went_on.losses)[:5] == list(kept.losses)


def test_keep_before_the_first_step_is_not_taken(library):
    told = []
    kept = run_to_end(bird(library, QUICK), lambda p: told.append(p) or "keep")
    assert kept.report.ended_early_at == 1 and "measuring" in {p.phase for p in told}


def test_a_concept_that_is_found_again_has_its_curve(library):
    taught = run_to_end(bird(library, QUICK.with_(steps=30)))
    again = run_to_end(bird(taught.library, QUICK.with_(steps=30)))
    assert list(again.losses) == pytest.approx(taught.losses, abs=1e-6) and len(taught.losses) == 30
    assert describe_result(again)["settings"]["steps"] == 30 and "losses" not in describe_result(again)
    assert {k: v for k, v in describe_result(again).items() if k != "reused"} == describe_result(taught)


def test_a_long_curve_is_thinned():
    curve = [float(i) for i in range(1003)]
    thin = thinned(curve)
    assert len(thin) == 200 and thin == sorted(thin) and thin[0] == 2.0 and thin[-1] > 999
    assert sum(thin) / 200 == pytest.approx(501, abs=1)
    assert thinned([]) == [] and thinned([1.0, 2.0]) == [1.0, 2.0]


# -- a real process


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from seqlora.demo.pictures import concept_pictures, held_out_emoji

    folder = tmp_path_factory.mktemp("pictures")
    drawn, _ = concept_pictures(held_out_emoji()[0], 4, seed=0)
    for i, picture in enumerate(drawn):
        Image.fromarray(((picture + 1) * 127.5).round().byte().movedim(0, -1).numpy()).save(folder / f"{i}.png")
    return folder


def training(pictures, library, steps, *more):
    """Arguments of the command line. Plain LoRA: nothing need be measured on generic captions."""
    given = ["train", str(pictures), "--library", str(library), "--name", "thing", "--trigger", "zorv", "--steps", str(steps)]
    given += ["--batch-size", "4", "--rank", "2", "--method", "lora", "--learning-rate", "0.01"]
    return [*given, "--basis-learning-rate", "0.003", *more]


class CommandLine:
    """`seqlora` in a process of its own, and what it says."""

    def __init__(self, log: Path, *arguments: str):
        command = [sys.executable, "-m", "seqlora.cli.main", *arguments]
        self.log = log
        with log.open("wb") as err, log.with_suffix(".json").open("wb") as out:
            root = Path(__file__).resolve().parents[2]
            threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # the bits of a sum depend on how many share it
            self.process = subprocess.Popen(command, cwd=root, stdout=out, stderr=err, env={**os.environ, **threads})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        return self.log.read_text()

    def until(self, words: str) -> None:
        end = time.monotonic() + 120
        while words not in self.said():
            assert time.monotonic() < end and self.process.poll() is None, self.said()
            time.sleep(0.02)

    def ends_with(self, code: int) -> str:
        assert self.process.wait(120) == code, self.said()
        return self.said()

    def report(self) -> dict:
        return json.loads(self.log.with_suffix(".json").read_text())


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_control_c_twice_cancels_and_the_next_run_goes_on_or_keeps(pictures, tmp_path):
    library = tmp_path / "lib"
    with CommandLine(tmp_path / "1.log", *training(pictures, library, 100000)) as first:
        first.until("training 3/")
        first.process.send_signal(signal.SIGINT)
        first.until("again cancels")  # two signals at once are one
        first.process.send_signal(signal.SIGINT)
        said = first.ends_with(130)
    assert "cancelled; the library is as it was; the same command goes on from step " in said
    assert Library.open(library).names == []
    step = int(said.rstrip().rsplit(" ", 1)[1])
    with CommandLine(tmp_path / "2.log", *training(pictures, library, 100000)) as second:
        second.until(f"training {step + 2}/")
        second.process.send_signal(signal.SIGINT)
        said = second.ends_with(0)
    assert f"Goes on from step {step}." in said and "keeping what was learned so far" in said
    report = second.report()
    assert report["resumed_at"] == step and report["ended_early_at"] == report["steps"] >= step + 2
    assert report["settings"]["steps"] == 100000 and Library.open(library).names == ["thing"]
    assert not (library / FOLDER).exists()


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_process_that_is_killed_goes_on_bit_for_bit(pictures, tmp_path, capsys):
    often = training(pictures, tmp_path / "killed", 6, "--checkpoint-minutes", "1e-9")
    with CommandLine(tmp_path / "1.log", *often) as killed:
        killed.until("training 3/")
    for name in ("killed", "whole"):
        assert main(training(pictures, tmp_path / name, 6)) == 0
    one, other = (Library.open(tmp_path / name).load("thing") for name in ("killed", "whole"))
    assert capsys.readouterr().err.count("Goes on from step") == 1
    assert all(torch.equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True))
