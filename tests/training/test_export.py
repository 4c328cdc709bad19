"""dsr export: what is left behind gives what the run's sparse model gives, or nothing is."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from helpers.small_runs import refused, small, train

from dsr_kernels.cli import main
from dsr_kernels.training import export
from dsr_kernels.training.data import sets as datasets
from dsr_kernels.training.run.checkpoint import Checkpoints
from dsr_kernels.training.run.folder import CHECKSUM
from dsr_kernels.training.setup import build_model

CHANGES = ("training.epochs=1", "model.width=0.1", "training.batch_size=200")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    assert train(folder, *CHANGES, kind="wrn") == 0
    return folder


@pytest.fixture(scope="module")
def sparse(run):
    recipe = small("wrn", *CHANGES)
    model = build_model(recipe, datasets.load(recipe.data))
    model.load_state_dict(Checkpoints(run / "checkpoints").load_latest()[0])
    return model.eval()


def images():
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def close(output, sparse):
    with torch.no_grad():
        torch.testing.assert_close(output, sparse(images()), rtol=1e-4, atol=1e-4)


def test_a_state_dict_of_the_dense_model(run, sparse, tmp_path, capsys):
    from safetensors.torch import load_file

    target = tmp_path / "dense.safetensors"
    assert main(["export", str(run), str(target)]) == 0
    assert (
        "takes float32 (batch, 1, 8, 8), of bytes as (byte - mean) / std" in capsys.readouterr().out
    )
    recipe = small("wrn", *CHANGES)
    dense = build_model(recipe, datasets.load(recipe.data), sparse=False)
    dense.load_state_dict(load_file(target))
    with torch.no_grad():
        close(dense.eval()(images()), sparse)
    assert [path.name for path in tmp_path.iterdir()] == ["dense.safetensors"]
    assert "is there already" in refused(capsys, "export", str(run), str(target))


def test_a_program_of_torch_export_with_any_batch(run, sparse, tmp_path):
    target = tmp_path / "model.pt2"
    assert main(["export", str(run), str(target)]) == 0
    with torch.no_grad():
        close(torch.export.load(target).module()(images()), sparse)


def test_onnx(run, sparse, tmp_path, capsys):
    target = tmp_path / "model.onnx"
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        message = refused(capsys, "export", str(run), str(target))
        assert 'pip install "dsr_kernels[export]"' in message and not list(tmp_path.iterdir())
        return
    import onnxruntime

    assert main(["export", str(run), str(target)]) == 0
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    close(torch.from_numpy(session.run(None, {"input": images().numpy()})[0]), sparse)


def test_what_gives_other_outputs_is_not_kept(run, tmp_path, capsys, monkeypatch):
    def wrong(dense, path, recipe, facts):
        path.write_text("")
        return lambda x: dense(x) + 0.1

    monkeypatch.setattr(export, "_safetensors", wrong)
    message = refused(capsys, "export", str(run), str(tmp_path / "x.safetensors"))
    assert "the file gives other outputs than the run's model: they differ by 0.1" in message
    assert not list(tmp_path.iterdir())


def test_whole_numbers_are_compared_at_indices_that_each_embedding_has():
    facts = export.Facts(3, (16,), torch.int64)
    model = torch.nn.ModuleList([torch.nn.Embedding(50, 4), torch.nn.EmbeddingBag(7, 4)])
    drawn = export._inputs(model, facts, 8)
    assert drawn.shape == (8, 16) and set(drawn.flatten().tolist()) == set(range(7))
    assert not export._inputs(torch.nn.Linear(16, 3), facts, 8).any()


def test_refusals(run, tmp_path, capsys):
    assert "ends in .onnx, .pt2, .saf" in refused(
        capsys, "export", str(run), str(tmp_path / "a.h5")
    )
    assert "holds no run" in refused(capsys, "export", str(tmp_path), str(tmp_path / "a.pt2"))


def test_a_run_of_an_older_version_reads_its_data(run, tmp_path):
    about = json.loads((run / "run.json").read_text())
    del about["input"], about[CHECKSUM]
    kept = (run / "run.json").read_bytes()
    try:
        (run / "run.json").write_text(json.dumps(about))
        assert main(["export", str(run), str(tmp_path / "a.safetensors")]) == 0
    finally:
        (run / "run.json").write_bytes(kept)
