"""All records of a run, read back: what reports and experiments tell of it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from dsr_kernels.errors import UsageError
from dsr_kernels.training.recipe.schema import Recipe
from dsr_kernels.training.run.csv_files import read_csv
from dsr_kernels.training.run.folder import Run


@dataclass
class Story:
    """All records of a run, read back."""

    recipe: Recipe
    about: dict[str, Any]
    results: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    rewires: list[dict[str, Any]]
    timings: list[dict[str, Any]]

    @classmethod
    def read(cls, run: Run) -> Story:
        about = run.read_json("run.json")
        if about is None:
            raise UsageError(f"{run.folder}: the run has not begun (there is no run.json)")
        tables = [
            read_csv(run.folder / f"{name}.csv") for name in ("metrics", "rewires", "timings")
        ]
        return cls(run.recipe(), about, run.read_json("results.json"), *tables)

    @property
    def layers(self) -> list[dict[str, Any]]:
        return self.about["model"]["layers"]

    @property
    def ended(self) -> dict[str, Any] | None:
        """What `setup.describe` said of the model at the end of training."""
        return (self.results or {}).get("model")

    @property
    def last_epoch(self) -> float:
        return self.metrics[-1]["epoch"] if self.metrics else 0.0

    def final_nonzeros(self) -> dict[str, int]:
        last = self.rewires[-1]
        return {layer["name"]: int(last[f"nonzeros:{layer['name']}"]) for layer in self.layers}

    def speed(self) -> float | None:
        """Median training speed over the epochs, images/s."""
        speeds = [row["images_per_second"] for row in self.timings]
        return statistics.median(speeds) if speeds else None
