"""The command ``dsr``: train, report, experiment, bench, info.

Exit codes: 0 done, 1 the system failed (a full disk) or a cell of an experiment did, 2 wrong usage
or input, 3 training stopped by a non-finite loss or weight, 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; every foreseeable failure is one sentence on stderr."""
    options = _parser().parse_args(arguments)
    from dsr_kernels.errors import Interrupted, TrainingStopped, UsageError

    try:
        return options.run(options)
    except (UsageError, TrainingStopped, Interrupted) as error:
        print(f"dsr: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("dsr: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `dsr train --list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder without permission
        print(f"dsr: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dsr", description="Truly sparse training for PyTorch.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    _add_train(commands)

    report = commands.add_parser("report", help="make report.html and the plots of a run again")
    report.add_argument("folder", metavar="RUN", type=Path)
    report.set_defaults(run=_report)

    _add_experiment(commands)
    _add_bench(commands)

    info = commands.add_parser("info", help="show version, instruction set, threads and devices")
    info.set_defaults(run=_info)
    return parser


def _add_train(commands) -> None:
    train = commands.add_parser(
        "train",
        help="train a recipe, or continue a run",
        description="Trains a recipe into a folder with metrics, checkpoints and a report.",
        epilog="example: dsr train --recipe wrn28_2-digits --set training.epochs=4 --out runs/a",
    )
    train.add_argument("--list", action="store_true", help="show the recipes and stop")
    train.add_argument("--recipe", metavar="NAME", help="a recipe by name, or a TOML file by path")
    train.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides",
                       help="override a value, as in model.sparsity=0.8 (repeatable)")  # fmt: skip
    train.add_argument("--out", metavar="RUN", type=Path, help="folder of the run")
    train.add_argument("--resume", metavar="RUN", type=Path, nargs="?", const=True,
                       help="continue the run in this folder (or in --out)")  # fmt: skip
    train.add_argument("--seed", metavar="N", type=int, help="the same as --set seed=N")
    train.add_argument(
        "--data-dir", metavar="DIR", type=Path, help="where the data set's files are"
    )
    train.add_argument("--eval-test-every", metavar="N", type=int,
                       help="look at the test set every N epochs, as the paper does; by "
                       "default only once, at the end")  # fmt: skip
    train.add_argument("--compare-dense", action="store_true",
                       help="at the end, time the sparse model beside its dense twin")  # fmt: skip
    train.add_argument(
        "--threads", metavar="N", type=int, help="CPU threads (default: torch's choice)"
    )
    train.add_argument("--device", metavar="NAME", help="where to train: cpu, cuda or cuda:N "
                       "(default: cpu, or what the run began on)")  # fmt: skip
    train.add_argument("--quiet", action="store_true", help="no progress bar, one line an epoch")
    train.add_argument("--no-report", action="store_true", help="leave page.html for `dsr report`")
    train.set_defaults(run=_train)


def _add_experiment(commands) -> None:
    experiment = commands.add_parser(
        "experiment",
        help="run a grid: methods x sparsities x seeds",
        description="Runs a grid of recipes, each cell as a process, and puts what they show into "
        "tables and plots. The same command again continues it: finished cells stay, failed ones "
        "are tried anew.",
        epilog="example: dsr experiment lenet300-fashion_mnist --jobs 2 --out runs/lenet",
    )
    add = experiment.add_argument
    add("name", metavar="NAME", nargs="?", help="a grid by name, or a TOML file by path")
    add("--list", action="store_true", help="show the grids and stop")
    add("--out", metavar="DIR", type=Path, help="folder of the experiment (default: runs/NAME)")
    add("--jobs", metavar="N", type=int, default=1, help="cells at a time (default: 1)")
    add("--threads", metavar="N", type=int, help="CPU threads of each (default: cores / jobs)")
    add("--data-dir", metavar="DIR", type=Path, help="where the data set's files are")
    add("--device", metavar="NAME", help="where to train: cpu, cuda or cuda:N (default: cpu)")
    add("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides",
        help="override a value in every cell, as in training.epochs=5 (repeatable)")  # fmt: skip
    add("--report", action="store_true", help="only make tables and plots again")
    experiment.set_defaults(run=_experiment)


def _add_bench(commands) -> None:
    bench = commands.add_parser(
        "bench",
        help="time one layer, sparse against dense",
        description="Times a layer's operations, sparse and dense in turn, on random numbers.",
        epilog="example: dsr bench --layer 64x64x3x3@16 --sparsity .9",
    )
    bench.add_argument("--layer", metavar="OxCxKHxKW@H", required=True,
                       help="output and input channels, kernel, and input size H or HxW; OxC alone "
                       "is a linear layer")  # fmt: skip
    bench.add_argument("--sparsity", metavar="S", type=float, default=0.9,
                       help="share of zeros, 0 <= S < 1 (default: 0.9)")  # fmt: skip
    bench.add_argument("--stride", metavar="N", type=int, default=1)
    bench.add_argument("--padding", metavar="N", type=int, help="default: half of the kernel")
    bench.add_argument("--batch", metavar="N", type=int, default=128, help="default: 128")
    bench.add_argument("--rounds", metavar="N", type=int, default=15, help="default: 15")
    bench.add_argument("--threads", metavar="N", type=int, help="default: torch's choice")
    bench.add_argument("--json", metavar="FILE", type=Path, help="also write the records here")
    bench.set_defaults(run=_bench)


def _train(options: argparse.Namespace) -> int:
    from dsr_kernels import text_table
    from dsr_kernels.errors import UsageError
    from dsr_kernels.training.recipe import load as recipes

    if options.list:
        rows = [(name, recipes.load(name).description) for name in recipes.names()]
        print("\n".join(text_table.columns(rows, left=(0, 1))))
        return 0
    folder = _folder(options)
    overrides = list(options.overrides)
    if options.eval_test_every is not None:
        overrides.append(f"training.eval_test_every={options.eval_test_every}")
    source = options.recipe or (folder / "recipe.toml" if options.resume else recipes.DEFAULT)
    recipe = recipes.load(str(source), overrides, options.seed)
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"--threads: expected at least 1, got {options.threads}")
    given = {"data_dir": options.data_dir, "compare_dense": options.compare_dense,
             "quiet": options.quiet or None, "make_report": not options.no_report,
             "device": options.device}  # fmt: skip
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
            raise UsageError("--out: name the folder of the run, such as --out runs/first")
        return options.out
    folder = options.out if options.resume is True else options.resume
    if folder is None or (options.out and options.out != folder):
        raise UsageError("--resume: name one run, with --resume RUN or --out RUN --resume")
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
