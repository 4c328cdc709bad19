"""Images are shared out over processes: each goes to one of them, and looks as it would to one."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from helpers import crew
from helpers.image_sets import write_folders, write_shards
from helpers.small_runs import QUIET, rows
from hypothesis import given
from hypothesis import strategies as st

from dsr_kernels.training.data import images
from dsr_kernels.training.data import sets as datasets
from dsr_kernels.training.data.streams import Share
from dsr_kernels.training.loop import Trainer
from dsr_kernels.training.recipe.schema import Data
from dsr_kernels.training.run.folder import Run

SIZES = (1, 2, 3, 5)


@given(st.integers(0, 300), st.integers(1, 40))
def test_parts_of_a_batch_are_all_of_it_in_order_and_of_almost_one_size(count, size):
    places = [range(count)[Share(rank, size).of(count)] for rank in range(size)]
    assert list(itertools.chain(*places)) == list(range(count))
    lengths = {len(part) for part in places}
    assert max(lengths) - min(lengths) <= 1


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    return {"folders": write_folders(root / "folders"), "shards": write_shards(root / "shards")}


def load(source: str, sources, workers: int = 0) -> tuple[datasets.DataSet, Data]:
    """A data set that augments, and what it was loaded by."""
    if source == "digits":
        own = Data(name="digits", validation=0, image_size=0, augment="crop_flip", pad=2)
        return datasets.load(own), own
    own = Data(name="imagenet", validation=0, augment=images.AUGMENT, image_size=32)
    own.workers = workers
    return datasets.load(own, sources[source]), own


def assert_shared(whole, parts) -> None:
    """`parts` of the processes, put together batch by batch, are the batches of one."""
    assert all(len(part) == len(whole) for part in parts)
    for batch, (pixels, labels) in enumerate(whole):
        assert torch.equal(torch.cat([part[batch][0] for part in parts]), pixels)
        assert torch.equal(torch.cat([part[batch][1] for part in parts]), labels)


@pytest.mark.parametrize("source", ["folders", "shards", "digits"])
@pytest.mark.parametrize("size", SIZES)
def test_an_epoch_in_parts_has_each_image_of_the_epoch_once(source, size, sources):
    data, own = load(source, sources)
    numbers = {"batch_size": 15, "seed": 1, "epoch": 2}
    whole = list(datasets.train_batches(data, own, **numbers))
    assert len(whole) == len(data.train) // 15
    parts = [
        list(datasets.train_batches(data, own, **numbers, share=Share(rank, size)))
        for rank in range(size)
    ]
    assert_shared(whole, parts)
    seen = [pixels.numpy().tobytes() for part in parts for batch in part for pixels in batch[0]]
    assert len(set(seen)) == len(whole) * 15
    later = list(datasets.train_batches(data, own, **numbers, start=1, share=Share(0, size)))
    assert_shared(parts[0][1:], [later])


@pytest.mark.parametrize("source", ["folders", "shards", "digits"])
@pytest.mark.parametrize("batch", [7, 11])
def test_an_evaluation_in_parts_has_each_image_once(source, batch, sources):
    """Twelve images in ImageNet's test part: with 11 the last batch is one image for five."""
    data, _ = load(source, sources)
    whole = list(datasets.eval_batches(data, data.test, batch))
    for size in SIZES:
        parts = [
            list(datasets.eval_batches(data, data.test, batch, share=Share(rank, size)))
            for rank in range(size)
        ]
        assert_shared(whole, parts)


def test_each_process_has_workers_of_its_own(sources):
    alone, own = load("shards", sources)
    numbers = {"batch_size": 15, "seed": 1, "epoch": 2, "share": Share(1, 2)}
    expected = list(datasets.train_batches(alone, own, **numbers))
    data, own = load("shards", sources, workers=2)
    assert_shared(expected, [list(datasets.train_batches(data, own, **numbers))])
    for share in (Share(0, 5), Share(4, 5)):  # of the last batch one has nothing, one has it all
        expected = list(datasets.eval_batches(alone, alone.test, 11, share=share))
        assert_shared(expected, [list(datasets.eval_batches(data, data.test, 11, share=share))])


def test_two_processes_train_on_shards_and_evaluate_as_one_does(sources, tmp_path):
    """Also the top-5 accuracy, and the workers' end."""
    changes = (
        *("data.image_size=32", "data.workers=1", "data.validation=12", "model.width=0.1"),
        *("training.batch_size=4", "training.epochs=1", "training.eval_batch_size=5"),
        *("rewiring.every=[[0, 2]]", "rewiring.prune_count=500"),
    )
    sets = [part for change in changes for part in ("--set", change)]
    where = ["--recipe", "resnet18-imagenet", "--data-dir", str(sources["shards"])]
    run = tmp_path / "run"
    ended = crew.run(tmp_path, ["train", *QUIET, *where, "--out", str(run), *sets])
    assert [rank.code for rank in ended] == [0, 0], ended
    recipe = Run.open(run).recipe()
    data = datasets.load(recipe.data, sources["shards"])
    trainer = Trainer(Run.open(run), recipe, data)
    trainer.start()  # from the last checkpoint, so there is nothing left but the evaluation
    alone = trainer.train()
    validation = trainer.evaluate(data.validation)
    trainer.records.close()
    together = json.loads((run / "results.json").read_text())
    for name in ("test_accuracy", "test_top5", "test_images"):
        assert together[name] == alone[name]
    assert together["test_loss"] == pytest.approx(alone["test_loss"], rel=1e-5)
    (row,) = rows(run, "metrics")
    assert float(row["validation_top5"]) == pytest.approx(validation["top5"], rel=1e-6)
    assert float(row["validation_loss"]) == pytest.approx(validation["loss"], rel=1e-5)
