"""What a training without an editor says of itself."""

import logging
import re

from seqlora.cli.log import log_to_stderr
from seqlora.library.store import Library
from seqlora.training.progress import run_to_end
from seqlora.training.train import train_steps
from tests.support.small import QUICK, SmallModel, small_request


def test_a_training_logs_what_happened_and_when(tmp_path, caplog):
    library = Library.create(tmp_path / "pets", 2, 8, "attention")
    steps = train_steps(library, small_request("cat", 0), QUICK, SmallModel(), checkpoint_minutes=1e-9)
    with caplog.at_level(logging.INFO, "seqlora"):
        run_to_end(steps)
    lines = [re.sub(r"\d+ s\b", "0 s", record.message) for record in caplog.records if record.name == "seqlora"]
    written = [f"checkpoint of step {step} written, 0 s in" for step in range(1, QUICK.steps + 1)]
    pictures = len(small_request("cat", 0).pictures)
    assert lines == [
        f"the training of 'cat' into library 'pets' starts, {QUICK.steps} steps on {pictures} pictures",
        f"the base model was measured on {len(SmallModel().generic_captions)} captions, 0 s in",
        *written,
        f"'cat' is in library 'pets' after {QUICK.steps} steps, 0 s",
    ]


def test_log_lines_take_the_place_of_a_progress_line(capsys):
    logger = logging.getLogger("seqlora")
    before = logger.level, list(logger.handlers)
    with log_to_stderr():
        logger.info("checkpoint written")
    logger.info("nobody listens")
    assert re.fullmatch(r"\r\d\d:\d\d:\d\d seqlora: checkpoint written +\n", capsys.readouterr().err)
    assert (logger.level, logger.handlers) == before
