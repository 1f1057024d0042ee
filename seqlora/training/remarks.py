"""What is told of words and rates before a training, and of its loss while it goes on: in time to cancel."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..families import FAMILIES, OTHER
from ..library.manifest import Base, Record
from ..settings import Settings
from .request import TrainingRequest

LEAST = 10  # losses in a mean
LOOKS = (0.1, 0.25, 0.5, 0.75)  # parts of a training after which its loss is looked at
MOST_PIECES = 8  # of a trigger; a made-up word that can be spoken has two to five
SPOILT = 0.005  # one that adds more than this share to it draws worse than nothing
LEARNED = 0.03  # a concept that takes away less than this share of the error on its own pictures has hardly been learned
TIMES = 30  # a rate that is this much off what suits the model is told


def first_and_last(losses: Sequence[float]) -> tuple[float, float]:
    """Means of a tenth of the steps at either end, of ten at least, of half of a short training: one step's loss says little,
    it is that of random noise."""
    part = max(1, min(max(LEAST, len(losses) // 10), len(losses) // 2))
    return _mean(losses[:part]), _mean(losses[-part:])


def of_rate(settings: Settings, family: str) -> str:
    """A sentence on a rate that is far from what suits this family; "" where it is not, or nothing is known of the family."""
    if family == OTHER or family not in FAMILIES:
        return ""
    usual, rate = FAMILIES[family].learning_rate, settings.learning_rate
    how = f"learning_rate is {rate:g}, where {usual:g} is usual for {FAMILIES[family].title}"
    if rate > TIMES * usual:
        return f"{how}: this may end in noise, watch the previews."
    return f"{how}: this will hardly learn." if rate * TIMES < usual else ""


def of_base(name: str, base: Base | None, *fingerprints: str) -> str:
    """A sentence on a model that is none of those that have these fingerprints, but fits; "" where it is one of them, and of an
    empty library."""
    if base is None or not base.fingerprint or base.fingerprint in fingerprints:
        return ""
    return (
        f"Library '{name}' was taught on another model than this one: another fine-tune or precision, or other LoRAs were on "
        "it. Its concepts fit, but may look otherwise and get into each other's way."
    )


def while_training(losses: Sequence[float], settings: Settings) -> str:
    """A sentence on a loss that rises or, halfway, has not fallen; "" at most steps, and where all is well."""
    done = len(losses)
    if done < 4 * LEAST or done not in [round(part * settings.steps) for part in LOOKS]:
        return ""
    early, late = losses[: done // 4], losses[-(done // 4) :]
    first, last = _mean(early), _mean(late)
    doubt = ((statistics.variance(early) + statistics.variance(late)) / len(early)) ** 0.5
    if last > first + 3 * doubt:
        return (
            f"The loss has risen from {first:.4f} to {last:.4f} by step {done}: learning_rate ({settings.learning_rate:g}) is "
            "probably too high; cancel, and lower it."
        )
    if last >= first and done >= settings.steps // 2:
        return (
            f"The loss has not fallen by step {done} ({first:.4f} at first, {last:.4f} now): if the previews do not come "
            f"nearer either, learning_rate ({settings.learning_rate:g}) does not suit this model."
        )
    return ""


def verdict(without: float, with_it: float) -> str:
    """What came of a training, from the error on the same noised pictures without the concept and with it."""
    if with_it < (1 - LEARNED) * without:
        return "learned"
    return "hardly" if with_it <= (1 + SPOILT) * without else "spoilt"


def at_end(without: float, with_it: float, settings: Settings) -> str:
    """A sentence on a concept that was not learned, with what to do; "" where it was."""
    found, rate = verdict(without, with_it), f"learning_rate (now {settings.learning_rate:g})"
    if found == "learned":
        return ""
    how = f"on its own pictures the model's error is {with_it:.4f} with it, {without:.4f} without"
    if found == "spoilt":
        return f"It is worse than nothing: {how}. Teach it anew with a lower {rate}."
    return f"Hardly anything was learned: {how}. Teach it anew with a higher {rate} or more steps (now {settings.steps})."


def of_layers(left_out: int, count: int) -> str:
    """A sentence on layers that are not taught; "" where all are."""
    if not left_out:
        return ""
    return (
        f"{left_out} of {count} layers do not run on such pictures and text, or nothing in the picture depends on them: they "
        "are left out, and nothing is lost by that."
    )


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def of_words(request: TrainingRequest, records: Sequence[Record], pieces: int = 0) -> list[str]:
    """What to know of trigger and class word before they are taught; a sentence each. `pieces` is how many tokens the text
    encoder takes the trigger for, 0 where that is not known."""
    said = []
    trigger, classes = request.trigger.casefold(), request.class_word.casefold().split()
    if pieces == 1 and trigger not in classes:
        said.append(f"The trigger '{request.trigger}' is a word that the text encoder knows already. Use a made-up word.")
    if pieces > MOST_PIECES:
        said.append(
            f"The trigger '{request.trigger}' falls into {pieces} pieces for the text encoder, which are harder to learn as "
            "one. Use a shorter word."
        )
    for record in records:
        if record.trigger.casefold() == trigger:
            own = ", with the vectors of the one that was taught last" if record.settings.get("trigger_vectors") else ""
            said.append(
                f"The trigger '{request.trigger}' is that of concept '{record.name}' already: in a prompt it means both{own}. "
                "Give each its own."
            )
        elif trigger in record.class_word.casefold().split():
            said.append(f"The trigger '{request.trigger}' is the class word of concept '{record.name}'. Use a made-up word.")
    if not request.class_word:
        said.append("There is no class word; the concept is learned better with one, such as 'dog'.")
    elif trigger in classes:
        said.append(f"The trigger '{request.trigger}' is the class word, which means something already. Use a made-up word.")
    if any(character.isdigit() for character in trigger):
        said.append(f"The trigger '{request.trigger}' has digits, which text encoders take one by one. Use letters only.")
    return said


def of_shared(records: Sequence[Record]) -> str:
    """A sentence on concepts that are used together and have one trigger; "" where each has its own."""
    by_trigger: dict[str, list[Record]] = {}
    for record in records:
        by_trigger.setdefault(record.trigger.casefold(), []).append(record)
    said = []
    for sharing in by_trigger.values():
        learned = [record for record in sharing if record.settings.get("trigger_vectors")]
        if len(sharing) > 1:
            names, own = (
                " and ".join(record.name for record in sharing),
                f" with the vectors of {learned[-1].name}" if learned else "",
            )
            said.append(f"{names} have one trigger, '{sharing[0].trigger}': in a prompt it means all of them{own}.")
    return " ".join(said)


def beyond_plan(number: int, capacity: int) -> str:
    """What to know before concept number `number` is taught: docs/results-earlier.md shows 101 in one of 32."""
    if number <= capacity:
        return ""
    return (
        f"This is concept {number} of a library planned for {capacity}: what concepts change elsewhere adds up, so with all of "
        "them on each keeps less of itself, and so does the base model. Start a library with a larger capacity for more."
    )
