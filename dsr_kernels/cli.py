"""The command ``dsr``: train, report, experiment, bench, info.

Exit codes:
    0    done
    1    the system failed, such as a full disk or too little memory, or a cell of an experiment did
    2    wrong usage or input
    3    training stopped, because the loss or a weight is not finite
    130  Ctrl-C
    143  SIGTERM
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

Commands = argparse._SubParsersAction  # what add_subparsers returns


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code. A failure is one sentence on stderr."""
    options = _parser().parse_args(arguments)
    from dsr_kernels.errors import Interrupted, SystemFailed, TrainingStopped, UsageError, in_words

    try:
        code: int = options.run(options)
        sys.stdout.flush()  # an output that cannot be written fails here, not behind the last line
        return code
    except (UsageError, TrainingStopped, Interrupted, SystemFailed) as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # nobody reads the output any more, as in `dsr train --list | head -1`
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dsr", description="Truly sparse training for PyTorch.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    _add_train(commands)

    report = commands.add_parser("report", help="write report.html and the plots of a run again")
    report.add_argument("folder", metavar="RUN", type=Path, help="folder of the run")
    report.set_defaults(run=_report)

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
    add("--out", metavar="RUN", type=Path, help="folder of the new run")
    resume = "continue the run in this folder, or in that of --out"
    add("--resume", metavar="RUN", type=Path, nargs="?", const=True, help=resume)
    add("--seed", metavar="N", type=int, help="the same as --set seed=N")
    add("--data-dir", metavar="DIR", type=Path, help="folder of the data set's files")
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
        description="Runs a grid of recipes, each cell in a process, and writes tables and plots "
        "of the results. The same command again continues it: finished cells stay, failed cells "
        "run again.",
        epilog="example: dsr experiment lenet300-fashion_mnist --jobs 2 --out runs/lenet",
    )
    add = experiment.add_argument
    add("name", metavar="NAME", nargs="?", help="a grid by name, or a TOML file by path")
    add("--list", action="store_true", help="list the grids and exit")
    add("--out", metavar="DIR", type=Path, help="folder of the experiment (default: runs/NAME)")
    jobs = "number of cells that run at a time (default: 1)"
    add("--jobs", metavar="N", type=int, default=1, help=jobs)
    threads = "number of CPU threads of each cell (default: cores / jobs)"
    add("--threads", metavar="N", type=int, help=threads)
    add("--data-dir", metavar="DIR", type=Path, help="folder of the data set's files")
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


def _train(options: argparse.Namespace) -> int:
    from dsr_kernels import text_table
    from dsr_kernels.errors import check_threads
    from dsr_kernels.training.recipe import load as recipes
    from dsr_kernels.training.run.folder import Run

    if options.list:
        rows = [(name, recipes.load(name).description) for name in recipes.names()]
        print("\n".join(text_table.columns(rows, left=(0, 1))))
        return 0
    folder = _folder(options)
    overrides = list(options.overrides)
    if options.eval_test_every is not None:
        overrides.append(f"training.eval_test_every={options.eval_test_every}")
    if options.resume and not options.recipe:
        recipe = Run.open(folder).recipe(overrides, options.seed)
    else:
        recipe = recipes.load(options.recipe or recipes.DEFAULT, overrides, options.seed)
    check_threads(options.threads)
    given = {
        "data_dir": options.data_dir,
        "compare_dense": options.compare_dense,
        "quiet": options.quiet or None,
        "make_report": not options.no_report,
        "device": options.device,
    }
    if options.threads is not None:
        given["threads"] = options.threads
    from dsr_kernels.training import start

    if options.resume:
        start.continue_run(folder, recipe, **given)
    else:
        start.new_run(recipe, folder, **given)
    return 0


def _folder(options: argparse.Namespace) -> Path:
    """The folder of the run, from --out or --resume."""
    from dsr_kernels.errors import UsageError
    from dsr_kernels.training.run.folder import Run

    if not options.resume:
        if options.out is None:
            raise UsageError("--out: expected the folder of the run, such as --out runs/first")
        return options.out
    folder = options.out if options.resume is True else options.resume
    if folder is None or (options.out and options.out != folder):
        raise UsageError("--resume: expected one run, as --resume RUN or --out RUN --resume")
    return Run.open(folder).folder


def _report(options: argparse.Namespace) -> int:
    from dsr_kernels.training.report import page
    from dsr_kernels.training.run.folder import Run

    print(page.write(Run.open(options.folder)))
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


if __name__ == "__main__":
    sys.exit(main())
