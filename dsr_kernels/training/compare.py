"""Times the sparse model and its dense twin side by side, on the run's own batches."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from dsr_kernels.training.data.sets import train_batches
from dsr_kernels.training.loop import Trainer
from dsr_kernels.training.networks import logits
from dsr_kernels.training.placement import autocast, loss_scaler, synchronize
from dsr_kernels.training.run.files import Json
from dsr_kernels.training.setup import FORMATS, build_model, build_optimizer, takes_images


def against_dense(trainer: Trainer, rounds: int = 7) -> Json:
    """Median images/s of whole training steps, sparse and dense.

    The trained sparse model and its dense twin in both memory formats take turns round by round,
    so that a slow moment of the machine meets all of them alike. The first round warms up and does
    not count. The trained model itself does not change.
    """
    recipe, data = trainer.recipe, trainer.data
    sparse = copy.deepcopy(trainer.model)
    steps = {"sparse": _step(trainer, sparse, trainer.format)}
    for layout, memory_format in FORMATS.items():
        twin = build_model(recipe, data, sparse=False).to(trainer.device)
        if takes_images(recipe, data):
            twin = twin.to(memory_format=memory_format)
        elif layout != "contiguous":
            continue
        steps[f"dense_{layout}"] = _step(trainer, twin, memory_format)
    times: dict[str, list[float]] = {name: [] for name in steps}
    batches = train_batches(
        data, recipe.data, recipe.training.batch_size, recipe.seed, 0, device=trainer.device
    )
    images, labels = next(batches)
    batches.close()  # else workers would go on reading while the clock runs
    with _free_choice_for_cudnn():
        for turn in range(rounds + 1):
            for name, step in steps.items():
                synchronize(trainer.device)
                started = time.perf_counter()
                step(images, labels)
                synchronize(trainer.device)
                if turn:
                    times[name].append(time.perf_counter() - started)
    speeds = {name: len(labels) / statistics.median(seconds) for name, seconds in times.items()}
    dense = max(speed for name, speed in speeds.items() if name != "sparse")
    return {
        "rounds": rounds,
        "batch": len(labels),
        "images_per_second": speeds,
        "sparse_over_best_dense": speeds["sparse"] / dense,
    }


@contextlib.contextmanager
def _free_choice_for_cudnn() -> Iterator[None]:
    """Lets cuDNN try its algorithms and take the fastest, deterministic or not."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = True, False
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def _step(
    trainer: Trainer, model: torch.nn.Module, memory_format: torch.memory_format
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """One training step of `model`, as a function of images and labels."""
    optimizer = build_optimizer(trainer.recipe, model)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4  # the step is timed; it need not learn
    model.train()
    device, precision = trainer.device, trainer.recipe.training.precision
    scaler = loss_scaler(device, precision)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            output = model(images.contiguous(memory_format=memory_format))
            name = trainer.recipe.model.name
            output = logits(output, len(labels), trainer.data.classes, name)
            loss = F.cross_entropy(output, labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step
