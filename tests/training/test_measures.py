"""Top-1 and top-5 against counts by hand; which columns a run has."""

import torch

from dsr_kernels.training.measures import hits, measures, named
from dsr_kernels.training.run.records import Records


def test_top1_and_top5_by_hand():
    scores = torch.tensor(
        [
            [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],  # label 0 is first
            [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],  # label 4 is fifth
            [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],  # label 5 is sixth
            [-9.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0],  # label 0 is last
            [-9.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0],  # label 3 is third
        ]
    )
    labels = torch.tensor([0, 4, 5, 0, 3])
    assert hits(scores, labels).item() == 1
    assert hits(scores, labels, 5).item() == 3


def test_top5_against_a_sort():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 30, generator=generator)
    labels = torch.randint(30, (200,), generator=generator)
    ranks = scores.argsort(dim=1, descending=True).tolist()
    expected = sum(y in rank[:5] for y, rank in zip(labels.tolist(), ranks, strict=True))
    assert hits(scores, labels, 5).item() == expected > hits(scores, labels).item() > 0


def test_only_runs_with_more_than_ten_classes_have_top5(tmp_path):
    assert measures(10) == ("loss", "accuracy") and measures(11) == ("loss", "accuracy", "top5")
    assert named("test", {"loss": 1.0, "top5": 0.5}) == {"test_loss": 1.0, "test_top5": 0.5}
    old = (
        "epoch,iteration,lr,train_loss,train_accuracy,validation_loss,validation_accuracy,"
        "test_loss,test_accuracy,nonzeros\n"
    )
    new = old.replace("n_accuracy,t", "n_accuracy,validation_top5,t")
    new = new.replace("t_accuracy,n", "t_accuracy,test_top5,n")
    for top5, header in ((False, old), (True, new)):
        folder = tmp_path / str(top5)
        folder.mkdir()
        Records(folder, [], top5=top5).close()
        assert (folder / "metrics.csv").read_text() == header
