"""Trackers get what the tables hold, under one name of the run however often it goes on."""

from __future__ import annotations

import sys
import types

import pytest
from helpers.small_runs import interrupt_at, refused, rows, train

from dsr_kernels.cli import main
from dsr_kernels.errors import UsageError
from dsr_kernels.training.recipe import load as recipes

TOLD: list[dict] = []  # one entry for each time a tracker was opened
SHORT = ("training.epochs=2", "rewiring.stop_epoch=1")


@pytest.fixture(autouse=True)
def nothing_told():
    TOLD.clear()


class Own:
    def __init__(self, run_id: str) -> None:
        self.told = {"id": run_id, "scalars": [], "flushed": 0, "closed": 0}
        TOLD.append(self.told)

    def scalars(self, iteration, values):
        self.told["scalars"].append((iteration, dict(values)))

    def flush(self):
        self.told["flushed"] += 1

    def close(self):
        self.told["closed"] += 1


class Failing(Own):
    """A tracker whose server is away all the time."""

    def scalars(self, iteration, values):
        raise ConnectionError("no route to host")

    def flush(self):
        raise RuntimeError("nothing is sent")

    def close(self):
        super().close()
        raise TimeoutError("nobody answers")


class Mute:
    def scalars(self, iteration, values):
        pass


def told(name: str) -> dict[int, float]:
    return {i: v[name] for part in TOLD for i, v in part["scalars"] if name in v}


def test_a_tracker_of_ones_own_gets_what_the_tables_hold(tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 15)
        assert train(run, *SHORT, f"tracking.to=['{__name__}:Own']") == 130
    assert main(["train", "--resume", str(run), "--quiet", "--no-report"]) == 0
    assert len({part["id"] for part in TOLD}) == 1 and len(TOLD) == 2
    assert all(part["closed"] == 1 and part["flushed"] for part in TOLD)
    for table, column, name in (
        ("metrics", "train_loss", "train_loss"),
        ("rewires", "pruned", "rewire/pruned"),
    ):
        kept = {int(r["iteration"]): float(r[column]) for r in rows(run, table) if r[column]}
        assert told(name) == pytest.approx(kept)


def test_a_run_may_get_another_tracker_when_it_goes_on(tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert train(run, *SHORT) == 130
    set_to = ["--set", f"tracking.to=['{__name__}:Own']"]
    assert main(["train", "--resume", str(run), "--quiet", "--no-report", *set_to]) == 0
    assert told("train_loss")


def test_a_trackers_errors_are_said_once_and_end_no_run(tmp_path, capsys):
    names = [f"{__name__}:Failing", f"{__name__}:Own"]
    assert train(tmp_path / "run", *SHORT, f"tracking.to={names}") == 0
    said = capsys.readouterr().err
    assert said.count("tracker ") == 1 and "Traceback" not in said
    assert f"tracker {names[0]} failed: ConnectionError: no route to host; the run goes" in said
    assert [part["closed"] for part in TOLD] == [1, 1] and told("train_loss")


def test_wandb(tmp_path, monkeypatch):
    def init(**given):
        own = Own(given["id"])
        own.told["given"] = given
        log = lambda values, step: own.scalars(step, values)  # noqa: E731

        def finish(exit_code):
            own.told["exit_code"] = exit_code
            own.close()

        return types.SimpleNamespace(log=log, finish=finish)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    changes = ("tracking.to=['wandb']", "tracking.project=sparse", "training.epochs=1")
    assert train(tmp_path / "run", *changes) == 0
    (part,) = TOLD
    assert part["closed"] == 1 and told("train_loss") and part["exit_code"] == 0
    given = part["given"]
    assert (given["project"], given["name"], given["resume"]) == ("sparse", "run", "allow")
    assert given["config"]["model.sparsity"] == 0.95
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert train(tmp_path / "cut", *changes) == 130
    assert TOLD[-1]["exit_code"] == 1
    (tmp_path / "cut/rewires.csv").write_text("nothing\n")  # refused once trackers are open
    assert main(["train", "--resume", str(tmp_path / "cut"), "--quiet"]) == 2
    assert len(TOLD) == 3 and TOLD[-1]["closed"] == 1 and TOLD[-1]["exit_code"] == 1


def test_mlflow(tmp_path, monkeypatch):
    own, known = Own(""), []

    def start_run(run_id=None, run_name=None, tags=None):
        own.told.setdefault("started", []).append((run_id, run_name, tags))
        known.append(types.SimpleNamespace(info=types.SimpleNamespace(run_id="7")))

    def end_run(status):
        own.told.setdefault("ended", []).append(status)
        own.close()

    fake = types.SimpleNamespace(
        set_experiment=lambda name: None,
        search_runs=lambda filter_string, output_format: known,
        start_run=start_run,
        log_params=lambda values: own.told.update(params=values),
        log_metrics=lambda values, step: own.scalars(step, values),
        end_run=end_run,
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert train(tmp_path / "run", "tracking.to=['mlflow']", "training.epochs=1") == 130
    assert main(["train", "--resume", str(tmp_path / "run"), "--quiet", "--no-report"]) == 0
    first, second = own.told["started"]
    assert first[1] == "run" and first[2]["dsr_run"] and second == ("7", None, None)
    assert own.told["params"]["model.sparsity"] == "0.95" and own.told["closed"] == 2
    assert own.told["ended"] == ["FAILED", "FINISHED"]


def test_refusals(tmp_path, capsys, monkeypatch):
    with pytest.raises(UsageError, match="unknown tracker 'wandbb'; did you mean wandb"):
        recipes.load("lenet300-digits", ["tracking.to=['wandbb']"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    pairs = ["--recipe", "lenet300-digits", "--out", str(tmp_path / "run"), "--set"]
    message = refused(capsys, "train", *pairs, "tracking.to=['wandb']")
    assert 'pip install "dsr_kernels[wandb]"' in message and not (tmp_path / "run").exists()

    def init(**_given):
        raise ConnectionError("no route to host\nand more of that")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    message = refused(capsys, "train", *pairs, "tracking.to=['wandb']")
    assert "wandb cannot be opened: ConnectionError: no route to host; `--set" in message
    assert not (tmp_path / "run").exists()
    message = refused(capsys, "train", *pairs, f"tracking.to=['{__name__}:Mute']")
    assert "got Mute without flush, close" in message and not (tmp_path / "run").exists()
