"""The tables and TensorBoard events of a run that was interrupted or killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.small_runs import QUIET, arguments, artefacts, interrupt_at, rows, train

from dsr_kernels.cli import main
from dsr_kernels.training.run.checkpoint import Checkpoints
from dsr_kernels.training.run.records import Events


def test_rows_after_the_checkpoint_are_cut_not_repeated(tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(whole) == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 20)
        train(run)
    with (run / "metrics.csv").open("a") as file:
        file.write("2,24,0.1,half a ro")
    assert main(["train", "--resume", str(run), *QUIET]) == 0
    assert artefacts(run) == artefacts(whole)


def test_tensorboard_shows_each_epoch_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 20)
        train(run)
    lost = Events(run / "tensorboard", 21)  # as if written after the checkpoint, before a kill
    lost.scalars(24, {"train_loss": 99.0})
    lost.close()
    assert main(["train", "--resume", str(run), *QUIET]) == 0
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    shown = events.Scalars("train_loss")
    assert [event.step for event in shown] == [12, 24, 36]
    expected = [float(row["train_loss"]) for row in rows(run, "metrics")]
    assert [event.value for event in shown] == pytest.approx(expected, rel=1e-6)
    assert {"rewire/threshold", "nonzeros/fc1"} <= set(events.Tags()["scalars"])


DIE = """
import os, signal, sys
from dsr_kernels.cli import main
from dsr_kernels.training.run.records import Records
from tensorboard.summary.writer.record_writer import RecordWriter

# Events stay in memory until a flush, as where TensorFlow's files are used.
write, flush, pending = RecordWriter.write, RecordWriter.flush, []
def flush_pending(self):
    while pending:
        write(self, pending.pop(0))
    flush(self)
RecordWriter.write = lambda self, data: pending.append(data)
RecordWriter.flush = flush_pending

real = Records.epoch
def epoch(self, row, timing):
    real(self, row, timing)
    if row["epoch"] == 2:
        if sys.argv[1] == "flushed":
            self.trackers[0].flush()
        os.kill(os.getpid(), signal.SIGKILL)
Records.epoch = epoch
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("events", ["flushed", "pending"])
def test_tensorboard_agrees_with_the_tables_after_a_kill(events, tmp_path):
    """The kill falls behind the row of epoch 2; the checkpoint of that iteration lies before it,
    and behind the rewire of that iteration.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, root = tmp_path / "run", str(Path(__file__).parents[2])
    changes = ("rewiring.every=[[0, 4]]", "checkpoint.every_iterations=12")
    done = subprocess.run(
        [sys.executable, "-c", DIE, events, *arguments(run, *changes)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        cwd=root,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    state = Checkpoints(run / "checkpoints").load_latest()[1]
    assert (state["position"]["iteration"], state["position"]["batch"]) == (24, 12)
    time.sleep(1)  # files of events are sorted by the second
    assert main(["train", "--resume", str(run), *QUIET]) == 0
    shown = EventAccumulator(str(run / "tensorboard"))
    shown.Reload()
    for table, tag, column in (
        ("metrics", "train_loss", "train_loss"),
        ("timings", "images_per_second", "images_per_second"),
        ("rewires", "rewire/threshold", "threshold"),
        ("rewires", "nonzeros/fc1", "nonzeros:fc1"),
    ):
        expected = [row for row in rows(run, table) if row[column]]
        assert [e.step for e in shown.Scalars(tag)] == [int(r["iteration"]) for r in expected]
        values = [float(row[column]) for row in expected]
        assert [e.value for e in shown.Scalars(tag)] == pytest.approx(values, rel=1e-6)


def test_a_shortened_log_is_refused(tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 20)
        train(run)
    (run / "rewires.csv").write_text("iteration\n")
    assert main(["train", "--resume", str(run), *QUIET]) == 2
    assert "rewires.csv: does not belong to the checkpoint" in capsys.readouterr().err
