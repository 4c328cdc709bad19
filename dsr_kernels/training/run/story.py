"""All records of a run, read back for reports and experiments."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from dsr_kernels.errors import UsageError
from dsr_kernels.training.recipe.schema import Recipe
from dsr_kernels.training.run.csv_files import Row, read_csv
from dsr_kernels.training.run.files import Json
from dsr_kernels.training.run.folder import Run


@dataclass
class Story:
    """All records of a run. The rows of its tables are numbers, None where a cell is empty."""

    recipe: Recipe
    about: Json  # run.json
    results: Json | None  # results.json; None before the end of training
    metrics: list[Row]
    rewires: list[Row]
    timings: list[Row]

    @classmethod
    def read(cls, run: Run) -> Story:
        """The records of `run`. Raises UsageError before training has begun."""
        about = run.read_json("run.json")
        if about is None:
            raise UsageError(f"{run.folder}: the run has not begun (there is no run.json)")
        tables = [
            read_csv(run.folder / f"{name}.csv") for name in ("metrics", "rewires", "timings")
        ]
        return cls(run.recipe(), about, run.read_json("results.json"), *tables)

    @property
    def layers(self) -> list[Json]:
        """Name, shape and number of positions of each sparse layer."""
        return self.about["model"]["layers"]

    @property
    def ended(self) -> Json | None:
        """Parameters and bytes of the model at the end of training; see `setup.describe`."""
        return (self.results or {}).get("model")

    @property
    def last_epoch(self) -> float:
        return self.metrics[-1]["epoch"] if self.metrics else 0.0

    def final_nonzeros(self) -> dict[str, int]:
        """Non-zeros of each sparse layer after the last rewire."""
        last = self.rewires[-1]
        return {layer["name"]: int(last[f"nonzeros:{layer['name']}"]) for layer in self.layers}

    def speed(self) -> float | None:
        """The median training speed over the epochs in images/s; None before the first epoch."""
        speeds = [row["images_per_second"] for row in self.timings]
        return statistics.median(speeds) if speeds else None
