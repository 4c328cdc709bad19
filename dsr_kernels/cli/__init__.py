"""The command ``dsr``: train, new, report, export, experiment, bench, info.

Exit codes:
    0    done
    1    the system failed, such as a full disk or too little memory, or a cell of an experiment did
    2    wrong usage or input
    3    training stopped, because the loss or a weight is not finite, or processes differ
    130  Ctrl-C
    143  SIGTERM
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from dsr_kernels.cli import general

Commands = argparse._SubParsersAction  # what add_subparsers returns


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code. A failure is one sentence on stderr."""
    from dsr_kernels.errors import (
        Interrupted,
        SaidElsewhere,
        SystemFailed,
        Terminated,
        TrainingStopped,
        UsageError,
        in_words,
    )

    with contextlib.ExitStack() as signals:
        try:
            options = _parse(sys.argv[1:] if arguments is None else arguments)
            if options.run is _train:
                from dsr_kernels.training.signals import EarlySigterm

                signals.enter_context(EarlySigterm())
            code: int = options.run(options)
            sys.stdout.flush()  # what cannot be written fails here, not behind the last line
            return code
        except (UsageError, TrainingStopped, Interrupted, SystemFailed) as error:
            return _fail(str(error), error.exit_code)
        except SaidElsewhere as error:
            return error.exit_code
        except Terminated as error:  # before the processes have met
            if os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1":
                return error.exit_code  # the first one says it
            return _fail(f"{error}{error.NOTHING}", error.exit_code)
        except KeyboardInterrupt:
            return _fail("interrupted", 130)
        except (
            BrokenPipeError
        ):  # nobody reads the output any more, as in `dsr train --list | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:  # a full disk, a folder without permission
            return _fail(in_words(error), 1)
        except MemoryError:
            return _fail("out of memory", 1)


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # stderr may be a file on the disk that is full
        print("dsr:", message.replace("\n", " "), file=sys.stderr, flush=True)
    return code


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _parser()
    general.check_command(parser, arguments)
    return parser.parse_args(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dsr", description="Truly sparse training for PyTorch.")
    general.add_options(parser)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    _add_train(commands)

    new = commands.add_parser("new", help="write a recipe, with a comment on every key")
    new.add_argument("file", metavar="FILE.toml", type=Path, help="the new recipe")
    new.add_argument("--method", metavar="NAME", default="dsr", help="its method (default: dsr)")
    model = "its model: a name, timm:NAME, torchvision:NAME or package.module:function"
    new.add_argument("--model", metavar="NAME", default="wrn28", help=f"{model} (default: wrn28)")
    data = "its data: a name, folder, torchvision:NAME or package.module:function"
    new.add_argument("--data", metavar="NAME", default="digits", help=f"{data} (default: digits)")
    new.set_defaults(run=_new)

    report = commands.add_parser("report", help="write report.html and the plots of a run again")
    report.add_argument("folder", metavar="RUN", type=Path, help="folder of the run")
    report.set_defaults(run=_report)

    export = commands.add_parser("export", help="write a run's model as a dense one, for others")
    export.add_argument("folder", metavar="RUN", type=Path, help="folder of the run")
    target = "the new file: model.onnx, model.pt2 or dense.safetensors"
    export.add_argument("file", metavar="FILE", type=Path, help=target)
    _add_data_dir(export)
    export.set_defaults(run=_export)

    _add_experiment(commands)
    _add_bench(commands)

    info = commands.add_parser("info", help="show version, processor, kernels, threads, GPUs")
    info.set_defaults(run=_info)
    return parser


def _add_train(commands: Commands) -> None:
    train = commands.add_parser(
        "train",
        help="train a recipe, or continue a run",
        description="Trains a recipe into a folder with metrics, checkpoints and a report.",
        epilog="example: dsr train --recipe wrn28_2-digits --set training.epochs=4 --out runs/a",
    )
    add = train.add_argument
    add("--list", action="store_true", help="list the recipes and exit")
    add("--recipe", metavar="NAME", help="a recipe by name, or a TOML file by path")
    _add_set(train, "override a value, as in model.sparsity=0.8 (repeatable)")
    epochs = "train N epochs, with the recipe's schedules stretched or shortened to them"
    add("--epochs", metavar="N", type=int, help=epochs)
    add("--out", metavar="RUN", type=Path, help="folder of the new run")
    resume = "continue the run in this folder, or in that of --out"
    add("--resume", metavar="RUN", type=Path, nargs="?", const=True, help=resume)
    add("--seed", metavar="N", type=int, help="the same as --set seed=N")
    _add_data_dir(train)
    every = "test every N epochs, as the paper does (default: only once, at the end)"
    add("--eval-test-every", metavar="N", type=int, help=every)
    compare = "at the end, time the sparse model beside its dense twin"
    add("--compare-dense", action="store_true", help=compare)
    add("--threads", metavar="N", type=int, help="number of CPU threads (default: torch's choice)")
    device = "cpu, cuda or cuda:N (default: cpu, or what the run began on)"
    add("--device", metavar="NAME", help=device)
    add("--quiet", action="store_true", help="print one line an epoch, without a progress bar")
    add("--no-report", action="store_true", help="do not write report.html and the plots")
    train.set_defaults(run=_train)


def _add_experiment(commands: Commands) -> None:
    experiment = commands.add_parser(
        "experiment",
        help="run a grid: methods x sparsities x seeds",
        description="Runs a grid of recipes, each cell in a process or a job of Slurm, and writes "
        "tables and plots of the results. The same command again continues it: finished cells "
        "stay, jobs that are alive are followed, failed cells run again.",
        epilog="examples: dsr experiment lenet300-fashion_mnist --jobs 2 --out runs/lenet; "
        "dsr experiment mechanism --launcher slurm --slurm time=240 --slurm partition=gpu",
    )
    add = experiment.add_argument
    add("name", metavar="NAME", nargs="?", help="a grid by name, or a TOML file by path")
    add("--list", action="store_true", help="list the grids and exit")
    add("--out", metavar="DIR", type=Path, help="folder of the experiment (default: runs/NAME)")
    launcher = "what cells run as: processes that end with the command; jobs of slurm that go on "
    launcher += "without it; or local, the way of slurm on this machine (default: processes)"
    choices = {"choices": ("processes", "slurm", "local"), "default": "processes"}
    add("--launcher", **choices, help=launcher)
    slurm = "what a job asks for, as in time=240 (minutes), partition=gpu, gpus_per_node=1"
    add("--slurm", metavar="KEY=VALUE", action="append", default=[], help=f"{slurm} (repeatable)")
    jobs = "number of cells that run at a time (default: 1), on slurm of each array (default: all)"
    add("--jobs", metavar="N", type=int, help=jobs)
    threads = "number of CPU threads of each cell (default: cores / jobs, or a slurm job's cores)"
    add("--threads", metavar="N", type=int, help=threads)
    _add_data_dir(experiment)
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    _add_set(experiment, "override a value in every cell, as in training.epochs=5 (repeatable)")
    add("--report", action="store_true", help="only write tables and plots again")
    experiment.set_defaults(run=_experiment)


def _add_bench(commands: Commands) -> None:
    bench = commands.add_parser(
        "bench",
        help="time one layer, sparse against dense",
        description="Times the operations of a layer on random numbers, sparse and dense in turn.",
        epilog="example: dsr bench --layer 64x64x3x3@16 --sparsity .9",
    )
    add = bench.add_argument
    layer = "output channels, input channels, kernel, and input size H or HxW; OxC alone is linear"
    add("--layer", metavar="OxCxKHxKW@H", required=True, help=layer)
    sparsity = "share of zeros, 0 <= S < 1 (default: 0.9)"
    add("--sparsity", metavar="S", type=float, default=0.9, help=sparsity)
    blocks = "output channels that share their positions (default: 1)"
    add("--block-size", metavar="G", type=int, default=1, help=blocks)
    add("--stride", metavar="N", type=int, default=1, help="stride of the kernel (default: 1)")
    add("--padding", metavar="N", type=int, help="zeros at each side (default: half of the kernel)")
    add("--batch", metavar="N", type=int, default=128, help="images in a batch (default: 128)")
    add("--rounds", metavar="N", type=int, default=15, help="times of each (default: 15)")
    add("--threads", metavar="N", type=int, help="number of CPU threads (default: torch's choice)")
    add("--json", metavar="FILE", type=Path, help="also write the records into this file")
    bench.set_defaults(run=_bench)


def _add_set(parser: argparse.ArgumentParser, what: str) -> None:
    options = {"action": "append", "default": [], "dest": "overrides"}
    parser.add_argument("--set", metavar="KEY=VALUE", help=what, **options)


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir", metavar="DIR", type=Path, help="folder of the data set's files"
    )


def _train(options: argparse.Namespace) -> int:
    from dsr_kernels.training import command

    return command.run(options)


def _report(options: argparse.Namespace) -> int:
    from dsr_kernels.training.report import page
    from dsr_kernels.training.run.folder import Run

    print(page.write(Run.open(options.folder)))
    return 0


def _new(options: argparse.Namespace) -> int:
    from dsr_kernels.training.recipe import new

    new.write(options.file, options.method, options.model, options.data)
    own = ":" in options.data and not options.data.startswith("torchvision:")
    files = "" if own or options.data == "digits" else " --data-dir DIR"
    command = f"dsr train --recipe {options.file}{files} --out runs/first"
    print(f"{options.file}: train it with: {command}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from dsr_kernels.training.export import export

    print(export(options.folder, options.file, options.data_dir))
    return 0


def _experiment(options: argparse.Namespace) -> int:
    from dsr_kernels.experiments import command

    return command.run(options)


def _bench(options: argparse.Namespace) -> int:
    from dsr_kernels.bench import command

    return command.run(options)


def _info(_: argparse.Namespace) -> int:
    from dsr_kernels.environment import check_processor, show_config

    check_processor()
    show_config()
    return 0
