"""Trackers that a recipe may name. A tracker is whatever has the three methods of `Tracker`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dsr_kernels.errors import require

Values = Mapping[str, Any]  # the keys of a recipe


class Tracker(Protocol):
    """What a run tells its numbers to. All calls come from one process."""

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after so many iterations. A resumed run repeats those of its last."""

    def flush(self) -> None:
        """Called when a checkpoint is written: what was told so far should survive a kill."""

    def close(self) -> None:
        """The run ends, for now or for good."""


class WandB:
    """Weights & Biases. It keeps what a killed process told: numbers of iterations that a resumed
    run repeats are not told again.
    """

    def __init__(self, run_id: str, folder: Path, project: str, values: Values) -> None:
        wandb: Any = require("wandb", "tracker wandb", "wandb")
        self.run = wandb.init(
            id=run_id,
            resume="allow",
            name=folder.name,
            project=project or None,
            dir=str(folder),
            config=dict(values),
        )

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=iteration)

    def flush(self) -> None:
        """It writes by itself."""

    def close(self, failed: bool = False) -> None:
        self.run.finish(exit_code=int(failed))


class MLflow:
    """MLflow, at the place that its own variables name."""

    def __init__(self, run_id: str, folder: Path, project: str, values: Values) -> None:
        mlflow: Any = require("mlflow", "tracker mlflow", "mlflow")
        self.mlflow = mlflow
        if project:
            mlflow.set_experiment(project)
        known = mlflow.search_runs(filter_string=f"tags.dsr_run = '{run_id}'", output_format="list")
        if known:
            self.run = mlflow.start_run(run_id=known[0].info.run_id)
        else:
            self.run = mlflow.start_run(run_name=folder.name, tags={"dsr_run": run_id})
            mlflow.log_params({k: str(v)[:500] for k, v in values.items()})

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(values), step=iteration)

    def flush(self) -> None:
        """It writes at once."""

    def close(self, failed: bool = False) -> None:
        self.mlflow.end_run(status="FAILED" if failed else "FINISHED")


TRACKERS = {"wandb": WandB, "mlflow": MLflow}
