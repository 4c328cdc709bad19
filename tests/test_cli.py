"""The command line: one clear sentence and the right exit code for whatever is typed."""

import fcntl
import importlib.util
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
import types
from pathlib import Path

import pytest
from helpers.small_runs import arguments, interrupt_at, refused, train

from dsr_kernels.cli import main
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.run.folder import Run
from dsr_kernels.training.signals import StopRequest
from dsr_kernels.version import versions

ROOT = Path(__file__).parents[1]


def test_list_shows_every_recipe_with_a_description(capsys):
    assert main(["train", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipes.names()
    assert all(len(line.split()) > 4 for line in lines)


def test_info_shows_the_configuration(capsys):
    assert main(["info"]) == 0
    assert "torch" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["info"], arguments(Path("run"))], ids=["info", "train"])
def test_an_unknown_instruction_set_is_one_sentence(command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "dsr_kernels", *command],
        env={**os.environ, "DSR_CPU_ISA": "sse9", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dsr: the environment variable DSR_CPU_ISA asks for 'sse9'")
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_wrong_usage_is_one_sentence(capsys, tmp_path):
    out = str(tmp_path / "r")
    assert "--out: expected the folder" in refused(capsys, "train")
    assert "did you mean wrn28_2-cifar10" in refused(
        capsys, "train", "--recipe", "wrn28_2-cifar", "--out", out
    )
    assert "did you mean training.epochs" in refused(
        capsys, "train", "--set", "training.epoch=3", "--out", out
    )
    assert "--threads: expected at least 1" in refused(
        capsys, "train", "--threads", "0", "--out", out
    )
    assert "--threads: expected at most 1024" in refused(
        capsys, "train", "--threads", "1" + "0" * 30, "--out", out
    )
    assert "data set mnist not found" in refused(
        capsys, "train", "--recipe", "lenet300-mnist", "--data-dir", str(tmp_path), "--out", out
    )
    assert "--resume: expected one run" in refused(capsys, "train", "--resume")
    assert "holds no run" in refused(capsys, "train", "--resume", out)
    assert "recipe: rewiring.prune_count: expected at most" in refused(
        capsys, *arguments(Path(out), "rewiring.prune_count=99999")
    )
    assert not (tmp_path / "r/metrics.csv").exists()


def test_a_device_that_is_not_there_is_one_sentence(capsys, tmp_path, monkeypatch):
    out = tmp_path / "r"
    for name in ("gpu", "cuda:", "cuda:x", "cuda:-1"):
        message = refused(capsys, *arguments(out), "--device", name)
        assert f"--device: expected cpu, cuda or cuda:N, got '{name}'" in message
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--device cuda: no CUDA device: " in refused(capsys, *arguments(out), "--device", "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert "--device cuda:2: expected a number below 2, the number of CUDA devices" in refused(
        capsys, *arguments(out), "--device", "cuda:2"
    )
    assert not out.exists()


def test_a_run_begun_on_a_gpu_goes_on_there_or_where_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 2)
        train(run, "training.epochs=1")
    about = Run.open(run).read_json("run.json")
    assert about["machine"]["device"] == "cpu"
    about["machine"] |= {"device": "cuda:0", "gpu": "NVIDIA H100"}
    Run.open(run).write_json("run.json", about)
    capsys.readouterr()
    assert "--device cuda:0: no CUDA device: " in refused(capsys, "train", "--resume", str(run))
    assert main(["train", "--resume", str(run), "--device", "cpu", "--no-report"]) == 0
    assert "the run began on NVIDIA H100. Another device rounds" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args,said",
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["xyzzy"], "expected one of train, new, report, export, experiment"),
    ],
)
def test_an_unknown_command_is_told_the_closest(args, said, capsys):
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_versions_and_help_need_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    for option in ("--version", "--help"):
        shown = subprocess.run(
            [sys.executable, "-m", "dsr_kernels", option],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert shown.startswith("dsr " if option == "--version" else "usage: dsr ")
    assert all(name in versions() for name in ("torch ", "Python 3."))


def test_completion_is_printed_by_shtab_or_asked_for(capsys, monkeypatch):
    asked = []

    def complete(parser, shell):
        asked.append(shell)
        return f"# completes {parser.prog}"

    monkeypatch.setitem(sys.modules, "shtab", types.SimpleNamespace(complete=complete, FILE={}))
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", "zsh"])
    assert (caught.value.code, asked) == (0, ["zsh"])
    assert capsys.readouterr().out == "# completes dsr\n"
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert 'needs shtab, which is not installed: pip install "dsr_kernels[completion]"' in refused(
        capsys, "--print-completion", "bash"
    )


@pytest.mark.parametrize("args", [[], ["trian"], ["train", "--sed", "1"], ["train", "--seed", "x"]])
def test_argparse_errors_exit_with_2(args, capsys):
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_seed_eval_test_every_and_compare_dense(tmp_path, capsys):
    run = tmp_path / "run"
    args = arguments(run, "training.epochs=2")
    assert main([*args, "--seed", "5", "--eval-test-every", "2", "--compare-dense"]) == 0
    recipe = Run.open(run).recipe()
    assert (recipe.seed, recipe.training.eval_test_every) == (5, 2)
    results = Run.open(run).read_json("results.json")
    speeds = results["against_dense"]["images_per_second"]
    assert set(speeds) == {"sparse", "dense_contiguous"} and min(speeds.values()) > 0
    assert "training steps: sparse" in capsys.readouterr().out


@pytest.mark.parametrize(
    "names,said",
    [
        (["safetensors"], "needs safetensors, which is"),
        (["safetensors", "sklearn"], "needs safetensors and scikit-learn, which are"),
    ],
    ids=["one", "two"],
)
def test_all_missing_packages_are_named_before_anything_is_made(
    names, said, tmp_path, capsys, monkeypatch
):
    real = importlib.import_module

    def without(name, *args):
        if name.split(".")[0] in names:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    message = refused(capsys, *arguments(tmp_path / "run"))
    assert f'{said} not installed: pip install "dsr_kernels[train]"' in message
    assert not (tmp_path / "run").exists()


def test_what_a_run_goes_without_is_said_before_it_starts(tmp_path, capsys, monkeypatch):
    real = importlib.util.find_spec
    hidden = ("tqdm", "matplotlib")

    def find_spec(name, *rest):
        return None if name in hidden else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert main(arguments(tmp_path / "run", "training.epochs=1")) == 0
    out = capsys.readouterr().out
    said = 'no progress bar, no plots: tqdm, matplotlib not installed; pip install "dsr_kernels['
    assert said in out and out.index(said) < out.index("epoch 1/1")


def test_off_a_terminal_there_are_plain_lines_and_no_bar(tmp_path, capfd):
    args = [a for a in arguments(tmp_path / "run", "training.epochs=2") if a != "--quiet"]
    assert main(args) == 0
    shown = capfd.readouterr()
    assert "\r" not in shown.out and shown.err == ""
    assert shown.out.splitlines()[2].startswith("never reached in 2 epochs: optimizer.lr changes")
    assert [line.split()[:2] for line in shown.out.splitlines()[3:5]] == [
        ["epoch", "1/2"],
        ["epoch", "2/2"],
    ]


def test_a_second_ctrl_c_quits_at_once():
    child = os.fork()
    if child == 0:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            if stop.signum == signal.SIGINT and stop.exit_code == 130:
                os.kill(os.getpid(), signal.SIGINT)
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


def read_until_closed(terminal):
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux says so when the other side is closed
            part = b""
        if not part:
            return shown.decode()
        shown += part


def test_on_a_terminal_there_is_a_bar_and_ctrl_c_exits_with_130(tmp_path):
    """The bar shows loss, accuracy, images/s and the time left."""
    run = tmp_path / "run"
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    args = [a for a in arguments(run, "training.epochs=100000") if a != "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dsr_kernels", *args],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=slave,
    )
    os.close(slave)
    metrics = run / "metrics.csv"
    while not metrics.exists() or metrics.stat().st_size < 200:  # the first epoch is done
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    shown = read_until_closed(master)
    os.close(master)
    assert process.wait(60) == 130
    for piece in ("epoch ", "/100000", "loss ", "accuracy ", "images/s", " left"):
        assert piece in shown, shown[-500:]
    assert "dsr train --resume" in shown and "Traceback" not in shown
