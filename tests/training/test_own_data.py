"""Datasets of a user's own in workers, and labels that are wrong before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsr_kernels.errors import UsageError
from dsr_kernels.training.data import sets
from dsr_kernels.training.recipe.schema import Data

RECORD = 64  # bytes


class Lazy:
    """Opens its file with the first item, so that each worker has a position of its own."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.targets, self.file = path, [i % 3 for i in range(count)], None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.file is None:
            self.file = open(self.path, "rb", buffering=0)  # noqa: SIM115
        self.file.seek(index * RECORD)
        number = int(self.file.read(RECORD))
        return torch.tensor([float(number)]), self.targets[index]


class Labelled:
    """Items whose labels are these; `known` says what the Dataset tells of them."""

    def __init__(self, labels: list[int], known: list[int] | None = None) -> None:
        self.answers = labels
        if known is not None:
            self.targets = known

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(4), self.answers[index]


def lazy(path: str, count: int) -> tuple[Lazy, Lazy]:
    return Lazy(Path(path), count), Lazy(Path(path), 6)


def labelled(test: list[int], tell: bool, known: list[int] | None = None) -> tuple:
    train = [0, 1, 2] * 10
    known = test if known is None else known
    return Labelled(train, train), Labelled(test, known if tell else None)


def settings(name: str, workers: int = 0, **arguments) -> Data:
    return Data(name=f"{__name__}:{name}", workers=workers, validation=0, arguments=arguments)


def test_workers_that_open_a_file_read_their_own_records(tmp_path):
    path, count = tmp_path / "records", 4000
    path.write_text("".join(f"{number:<{RECORD}}" for number in range(count)))
    data = sets.load(settings("lazy", workers=4, path=str(path), count=count))
    assert data.train.dataset.file is None  # nor has reading the form of an item opened it here
    read = torch.cat([inputs for inputs, _ in data.train.eval_batches(20)])
    assert torch.equal(read.flatten(), torch.arange(float(count)))


@pytest.mark.parametrize("tell", [True, False])
@pytest.mark.parametrize("label", [3, -1])
@pytest.mark.parametrize("workers", [0, 2])
def test_labels_of_the_test_part_are_checked_before_training(label, tell, workers):
    # Of labels that are not told some items are read, the first and the last one among them.
    test = [0, 1] * 40 + [label]
    with pytest.raises(UsageError, match=f"test part: item 80: expected a label .* got {label}"):
        sets.load(settings("labelled", workers, test=test, tell=tell))


def test_what_counts_is_the_label_that_an_item_has():
    test = [0, 1, 2] * 4
    data = sets.load(settings("labelled", test=test, tell=True, known=[n + 1 for n in test]))
    assert len(data.test) == 12
