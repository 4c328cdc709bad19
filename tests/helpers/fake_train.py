"""Run by the tests of experiments in place of `dsr train`: leaves what a run leaves, in no time.

`DSR_FAKE` says what a cell is to do, as JSON: {"fail": {name: message}, "sleep": {name: seconds},
"hold": [names], "gather": cells}. It sleeps only when it begins; it holds until there is a file
OUT/release; and nobody goes on before so many have begun. Each start and end is a line in
OUT/events.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

arguments = sys.argv[1:]
resumed = "--resume" in arguments
run = Path(arguments[arguments.index("--resume" if resumed else "--out") + 1])
plan = json.loads(os.environ.get("DSR_FAKE", "{}"))
events = run.parents[1] / "events"


def tell(what: str) -> None:
    with events.open("a") as file:
        file.write(f"{what} {run.name} {' '.join(arguments)}\n")


def stop(signum: int, _frame: object) -> None:
    tell(f"stopped-{signum}")
    os._exit(128 + signum)


for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, stop)
lock = (run / ".lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
if not resumed:
    recipe = Path(arguments[arguments.index("--recipe") + 1])
    (run / "recipe.toml").write_text(recipe.read_text())
tell("resume" if resumed else "begin")
deadline = time.monotonic() + 60


def held() -> bool:
    few = events.read_text().count("begin ") < plan.get("gather", 0)
    return few or (run.name in plan.get("hold", ()) and not (events.parent / "release").exists())


while held() and time.monotonic() < deadline:
    time.sleep(0.01)
if not resumed:
    time.sleep(plan.get("sleep", {}).get(run.name, 0.0))
if message := plan.get("fail", {}).get(run.name):
    print(f"dsr: {message}", file=sys.stderr)
    sys.exit(3)
layer = {"name": "fc1", "shape": [10, 10], "positions": 100}
model = {"layers": [layer], "dense_parameters": 5, "nonzeros": 10}
(run / "run.json").write_text(json.dumps({"model": model}))
(run / "metrics.csv").write_text("epoch,validation_accuracy\n1,0.5\n2,0.75\n")
(run / "timings.csv").write_text("train_seconds,images_per_second\n1.5,100\n2.5,300\n")
(run / "rewires.csv").write_text(
    "iteration,epoch,nonzeros,exploration,nonzeros:fc1\n0,0,10,0.1,10\n5,1,10,0.25,10\n"
)
tell("end")
(run / "results.json").write_text(json.dumps({"test_accuracy": 0.8}))
