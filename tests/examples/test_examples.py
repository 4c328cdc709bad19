"""Every script of examples/ runs on tiny data, rewires, and goes on from its checkpoint."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.example_data import write_cifar10, write_images

EXAMPLES = Path(__file__).parents[2] / "examples"
ROOT = EXAMPLES.parent
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "common.py")
MARK = "# dsr_kernels"
SMALL = ["--width", "8", "--batch-size", "16", "--every", "2"]
SMALL_IMAGES = ["-j", "0", "--image-size", "32", "--every", "2"]
# What each needs, its data, and its arguments; {out} is a folder of the test.
NEEDS = {
    "cifar.py": ((), write_cifar10, [*SMALL, "--checkpoint", "{out}/c.pt"]),
    "accelerate_loop.py": (
        ("accelerate",),
        write_cifar10,
        [*SMALL, "--batch-size", "8", "--folder", "{out}/run"],
    ),
    "lightning_fit.py": (("lightning",), write_cifar10, [*SMALL, "--folder", "{out}/run"]),
    "hf_trainer.py": (
        ("transformers", "accelerate"),
        write_cifar10,
        [*SMALL, "--folder", "{out}/run"],
    ),
    "imagenet.py": (
        ("torchvision",),
        write_images,
        [*SMALL_IMAGES, "-a", "resnet18", "-b", "4", "--checkpoint", "{out}/c.pt"],
    ),
    "timm_train.py": (
        ("timm", "torchvision"),
        write_images,
        [
            *SMALL_IMAGES,
            *("--model", "resnet18", "-b", "2", "--grad-accum-steps", "2"),
            *("--model-ema", "--folder", "{out}/run"),
        ],
    ),
}


def why_not(modules: tuple[str, ...]) -> str:
    """Why a script cannot run here; "": it can. What is installed may yet not import."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    program = "; ".join(f"import {name}" for name in modules)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return f"{' and '.join(modules)}: {last}" if done.returncode else ""


def run(script: str, data: Path, out: Path, *more: str) -> str:
    arguments = [part.format(out=out) for part in NEEDS[script][2]]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), str(data), *arguments, *more],
        capture_output=True,
        text=True,
        env=environment,
        cwd=out,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_runs_rewires_and_goes_on(script, tmp_path):
    modules, write, _ = NEEDS[script]
    steps = 5 if write is write_cifar10 else 4  # of an epoch
    if modules and (reason := why_not(modules)):
        pytest.skip(reason)
    data = write(tmp_path / "data")
    more = ["--resume", str(tmp_path / "c.pt")] if script == "imagenet.py" else []
    first = rewires(run(script, data, tmp_path, "--epochs", "2"))
    assert first == list(range(2, 2 * steps * 3 // 4 + 1, 2))
    again = rewires(run(script, data, tmp_path, "--epochs", "4", *more))
    assert again == [n for n in range(2, 4 * steps * 3 // 4 + 1, 2) if n > 2 * steps]


BROKEN = """
import runpy, sys, torch

def half(state, path, *_):
    open(path, "w").write("half")
    raise OSError("killed")

torch.save = half
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv.pop(0))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    data = write_cifar10(tmp_path / "data")
    run("cifar.py", data, tmp_path, "--epochs", "1")
    kept = (tmp_path / "c.pt").read_bytes()
    script = [str(EXAMPLES), str(EXAMPLES / "cifar.py"), str(data), *SMALL, "--epochs", "2"]
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, *script, "--checkpoint", str(tmp_path / "c.pt")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert "OSError: killed" in done.stderr, done.stderr
    assert (tmp_path / "c.pt").read_bytes() == kept


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_writes_over_its_only_checkpoint(script):
    text = (EXAMPLES / script).read_text(encoding="utf-8")
    written = re.findall(r"(?:torch\.save|save_state)\((.*)\)\n", text)
    assert all(".part" in call or "epoch + 1" in call for call in written), written


def rewires(output: str) -> list[int]:
    return [int(step) for step in re.findall(r"rewire at iteration (\d+)", output)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_all_that_differs_from_a_dense_training_is_marked(script):
    text = (EXAMPLES / script).read_text(encoding="utf-8")
    code = text.split('"""', 2)[2]
    marked = [line for line in code.splitlines() if MARK in line]
    rest = [line for line in code.splitlines() if MARK not in line]
    assert 3 <= len(marked) <= 8
    compile("\n".join(rest), script, "exec")
    told = [line for line in rest if re.search(r"dsr|rewir|sparsi", line, re.IGNORECASE)]
    assert all("between rewires" in line for line in told), told
    assert "`# dsr_kernels`" in text.split('"""')[1]


def test_the_page_and_the_list_name_every_script():
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+\.py)`", page)) - {"common.py"} == set(SCRIPTS) == set(NEEDS)
