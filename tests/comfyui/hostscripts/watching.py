"""Long trainings without a model: what the watching of them keeps, sends and costs."""

from __future__ import annotations

import json
import threading
import time

import boot
from seqlora_pack.nodes import host
from seqlora_pack.nodes.server import training_status as watching
from seqlora_pack.seqlora.errors import SeqLoRAError
from seqlora_pack.seqlora.training.progress import Phase, Progress

STEPS = 20_000
sent: list[tuple[float, str]] = []
host.send = lambda event, data: sent.append((time.monotonic(), json.dumps(data)))


def losses(step: int) -> float:
    return 1 / step


def follow_all(training: watching.Training) -> float:
    began = time.perf_counter()
    for step in range(1, STEPS + 1):
        training.follow(Progress(Phase.TRAINING, step, STEPS, losses(step)))
    return (time.perf_counter() - began) / STEPS


def whole(state: dict) -> bool:
    """Of one moment: the curve ends where the training is."""
    last = state["losses"][-1][0] if state["losses"] else 0
    return last == state["step"] and len(state["losses"]) <= watching.POINTS


def ask() -> None:
    while not ended.is_set():
        answers.append(whole(training.told()))


with watching.watched("1", "w", "lib", "cat", "zyx") as training:
    ended, answers = threading.Event(), []
    asking = threading.Thread(target=ask)
    asking.start()
    follow_all(training)
    ended.set()
    asking.join()
    training.end(Phase.FINISHED)
curve = training.told()["losses"]
seconds = sent[-1][0] - sent[0][0]
events = [json.loads(data) for _, data in sent]
with watching.watched("1", "w", "lib", "cat", "zyx") as training:
    alone = follow_all(training)  # nobody grad_anchor
half = len(curve) // 2
part = range(curve[half - 1][0] + 1, curve[half][0] + 1)

ends = {}
for node, error in (("2", None), ("3", SeqLoRAError("The disk is full")), ("4", ValueError("odd")), ("5", host.Interrupted())):
    try:
        with watching.watched(node, "", "lib", "cat", "zyx") as other:
            if error:
                raise error
            other.end(Phase.FINISHED)
    except BaseException as raised:
        assert raised is error
    ends[node] = (other.told()["phase"], other.told()["note"], json.loads(sent[-1][1])["phase"])
for number in range(2 * watching.REMEMBERED):
    with watching.watched(f"many {number}", "", "lib", "cat", "zyx") as other:
        other.end(Phase.FINISHED)
remembered = [one.names["node"] for one in watching.TRAININGS.values()]
with watching.watched("many 60", "", "lib", "cat", "zyx") as again:
    same_node = [one.names["id"] for one in watching.TRAININGS.values() if one.names["node"] == "many 60"]

boot.report(
    answers=len(answers),
    all_whole=all(answers),
    points=len(curve),
    last=curve[-1][0],
    mean_error=abs(curve[half][1] * len(part) / sum(map(losses, part)) - 1),
    news=sum(len(event["losses"]) for event in events),
    phases=[event["phase"] for event in events if event["phase"] != "training"],
    allowed=3 + seconds / watching.PAUSE,  # one more at each change of phase
    events=len(events),
    microseconds=round(alone * 1e6, 1),
    ends=ends,
    remembered=len(remembered),
    newest=remembered[-1],
    same_node=same_node == [again.names["id"]],
)
