"""Run by test_experiment_slurm.py as `sbatch`, `srun`, `squeue`, `sacct`, `scontrol`, `scancel`.

It runs the jobs as processes of this machine. `FAKE_SLURM` is its folder: a file JOB.state for each
job, `calls` with every command line, and N.sh, the script of submission N. A job whose state a test
has written, as OUT_OF_MEMORY, keeps it. `refuse` holds what sbatch refuses a job with; without
`accounts` sacct fails.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

HOME = Path(os.environ.get("FAKE_SLURM", ""))  # empty where a test only imports this
LIVE = ("PENDING", "RUNNING")


def state_of(job: str) -> str:
    return (HOME / f"{job}.state").read_text()


def set_state(job: str, state: str, home: Path = HOME) -> None:
    part = home / f"{job}.part"
    part.write_text(state)
    part.rename(home / f"{job}.state")


def jobs() -> list[str]:
    return sorted(path.stem for path in HOME.glob("*.state"))


def options_of(script: Path) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script.read_text(), re.MULTILINE))


def tasks_of(number: str) -> list[str]:
    array = options_of(HOME / f"{number}.sh").get("array")
    if array is None:
        return [number]
    return [f"{number}_{task}" for task in range(int(array.split("%")[0].split("-")[1]) + 1)]


def sbatch(path: str) -> int:
    if (HOME / "refuse").exists():
        print(f"sbatch: error: {(HOME / 'refuse').read_text()}", file=sys.stderr)
        return 1
    number = str(100 + len(list(HOME.glob("*.sh"))))
    (HOME / f"{number}.sh").write_text(Path(path).read_text())
    for job in tasks_of(number):
        set_state(job, "PENDING")
    nowhere = subprocess.DEVNULL
    command = [sys.executable, __file__, "serve", number]
    subprocess.Popen(command, start_new_session=True, stdin=nowhere, stdout=nowhere, stderr=nowhere)
    print(f"Submitted batch job {number}")
    return 0


def serve(number: str) -> int:
    """What the cluster does with a submission, once sbatch has ended."""
    options, deadline = options_of(HOME / f"{number}.sh"), time.monotonic() + 60
    after = options.get("dependency", "").removeprefix("afterany:").split(":")
    while any(state_of(job) in LIVE for job in after if job) and time.monotonic() < deadline:
        time.sleep(0.02)
    places = threading.Semaphore(int(options.get("array", "0%1").split("%")[1]))
    threads = [threading.Thread(target=run, args=(job, places)) for job in tasks_of(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0


def run(job: str, places: threading.Semaphore) -> None:
    number, _, task = job.partition("_")
    names = {"SLURM_JOB_ID": number, "SLURM_CPUS_ON_NODE": "1"}
    if task:
        names |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task}
    with places:
        while state_of(job) == "PENDING":
            set_state(job, "RUNNING")
            script = ["bash", str(HOME / f"{number}.sh")]
            child = subprocess.Popen(script, env={**os.environ, **names}, start_new_session=True)
            (HOME / f"{job}.pid").write_text(str(child.pid))
            code = child.wait()
            if (HOME / f"{job}.requeue").exists():
                (HOME / f"{job}.requeue").unlink()
                set_state(job, "PENDING")
            elif state_of(job) == "RUNNING":
                set_state(job, "FAILED" if code else "COMPLETED")


def srun(*arguments: str) -> int:
    start = next(at for at, word in enumerate(arguments) if word == sys.executable)
    number, task = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_TASK_ID", "")
    for stream, option in ((1, "--output"), (2, "--error")):
        path = arguments[arguments.index(option) + 1]
        for sign, value in (("%j", number), ("%A", number), ("%a", task), ("%t", "0")):
            path = path.replace(sign, value)
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.execv(sys.executable, arguments[start:])


def squeue(*_: str) -> int:
    print("\n".join(job for job in jobs() if state_of(job) in LIVE))
    return 0


def sacct(*arguments: str) -> int:
    if not (HOME / "accounts").exists():
        print("Slurm accounting storage is disabled", file=sys.stderr)
        return 1
    asked = {arguments[at + 1] for at, word in enumerate(arguments) if word == "-j"}
    print("JobID|State|NodeList")
    for job in jobs():
        if job.partition("_")[0] in asked:
            print(f"{job}|{state_of(job)}|none\n{job}.batch|{state_of(job)}|none")
    return 0


def scontrol(verb: str, job: str) -> int:
    assert verb == "requeue"
    (HOME / f"{job}.requeue").touch()
    return 0


def scancel(*wanted: str) -> int:
    for job in jobs():
        if {job, job.partition("_")[0]} & set(wanted) and state_of(job) in LIVE:
            set_state(job, "CANCELLED by 1000")
            if (HOME / f"{job}.pid").exists():
                os.killpg(int((HOME / f"{job}.pid").read_text()), signal.SIGKILL)
    return 0


if __name__ == "__main__":
    with (HOME / "calls").open("a") as file:
        file.write(" ".join(sys.argv[1:]) + "\n")
    sys.exit(globals()[sys.argv[1]](*sys.argv[2:]))
