"""A fused model is the object that it was: copies, pickles, states, and what else is done to it."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.multiprocessing
from helpers.fused_models import MODELS, ResNet, check_same, images, sparse_pair, step
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import dsr_kernels
from dsr_kernels import models


def pair():
    torch.manual_seed(0)
    return sparse_pair(ResNet())


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "old pickle": lambda model: pickle.loads(pickle.dumps(model, protocol=2)),
    "torch.save": saved,
    "a part": lambda model: nn.Sequential(copy.deepcopy(model)),
}


def test_class_names_and_structure_stay():
    fused, plain = pair()
    assert isinstance(fused, ResNet)
    assert type(fused) is not ResNet
    assert type(fused).__name__ == "ResNet"
    assert repr(fused) == repr(plain)
    assert fused.state_dict().keys() == plain.state_dict().keys()
    for (a, one), (b, other) in zip(fused.named_modules(), plain.named_modules(), strict=True):
        assert a == b
        assert vars(one).keys() == vars(other).keys()
    fused.load_state_dict(plain.state_dict())
    plain.load_state_dict(fused.state_dict())


def test_blocks_alike_share_a_class():
    fused, _ = pair()
    assert type(fused.layer1[0]) is type(fused.layer1[1])
    assert type(fused.layer2[0]) is not type(fused.layer1[0])  # it has a shortcut


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_fused_and_independent(name):
    fused, plain = pair()
    twin = COPIES[name](fused)
    inner = twin if isinstance(twin, ResNet) else twin[0]
    assert type(inner) is type(fused)
    expected = step(plain, images())
    found = step(twin, images())
    check_same(dict(zip(expected, found.values(), strict=True)), expected, 1e-8)
    for a, b in zip(fused.buffers(), sparse_pair_buffers(), strict=True):
        assert torch.equal(a, b)


def sparse_pair_buffers():
    return list(pair()[0].buffers())


def test_a_pickle_of_another_version_comes_back_unfused(monkeypatch):
    fused, _ = pair()
    pickled = pickle.dumps(fused)
    monkeypatch.setattr("dsr_kernels.fusing.classes.VERSION", 99)
    assert type(pickle.loads(pickled)) is ResNet


def _output(model, queue):
    torch.set_num_threads(1)
    queue.put(model(images()).tolist())


def test_a_spawned_process_gets_a_fused_model():
    torch.manual_seed(0)
    fused = models.wrn_28(0.25).double()
    dsr_kernels.fuse(fused, verbose=False)
    fused.eval()
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_output, args=(fused, queue))
    process.start()
    found = torch.tensor(queue.get(timeout=120), dtype=torch.float64)
    process.join()
    torch.testing.assert_close(found, fused(images()), rtol=1e-9, atol=1e-9)


def test_unfuse_gives_the_classes_back():
    fused, plain = pair()
    assert dsr_kernels.unfuse(fused) is fused
    for one, other in zip(fused.modules(), plain.modules(), strict=True):
        assert type(one) is type(other)
    check_same(step(fused, images()), step(plain, images()), 0)
    dsr_kernels.unfuse(plain)


def test_fusing_twice_is_fusing_once():
    fused, _ = pair()
    before = [type(m) for m in fused.modules()]
    first = dsr_kernels.fuse(fused, verbose=False)
    assert [type(m) for m in fused.modules()] == before
    assert dsr_kernels.fuse(fused, verbose=False) == first


def test_the_report_is_printed_where_asked_for(capsys):
    fused, _ = pair()
    report = dsr_kernels.fuse(fused)
    assert capsys.readouterr().out == f"{report}\n"
    lines = str(report).split("\n")
    assert lines[0].split() == ["layer", "what", "how", "it", "runs", "now"]
    (bn1,) = (line for line in lines if line.startswith("layer2.1.bn1"))
    assert "inside layer2.1.conv2 with ReLU; statistics while layer2.1.conv1 stores" in bn1
    dsr_kernels.fuse(fused, verbose=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("function", [dsr_kernels.fuse, dsr_kernels.unfuse])
def test_what_is_no_model_is_refused(function):
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got dict"):
        function({})


def test_summary_and_explain_see_the_same_layers():
    fused, plain = pair()
    assert str(dsr_kernels.summary(fused)) == str(dsr_kernels.summary(plain))
    rows = [[row.layer for row in dsr_kernels.explain(m, (2, 3, 16, 16)).rows] for m in pair()]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 10
    step(fused, images())


def test_a_model_of_one_layer_and_one_without_any():
    for model in (dsr_kernels.SparseConv2d(3, 4, 3), nn.Sequential(), nn.Linear(2, 2)):
        kind = type(model)
        assert dsr_kernels.fuse(model, verbose=False).rows == []
        assert type(model) is kind


def test_a_model_with_hooks_of_its_own_is_fused():
    fused, plain = pair()
    calls = []
    for model in (fused, plain):
        model.register_forward_hook(lambda *_: calls.append(1))
    dsr_kernels.fuse(fused, verbose=False)
    assert type(fused) is not ResNet
    check_same(step(fused, images()), step(plain, images()), 1e-8)
    assert len(calls) == 2


def test_averages_follow():
    fused, plain = pair()
    for model in (fused, plain):
        average = AveragedModel(model, use_buffers=True)
        average.update_parameters(model)
        model.average = average(images())
    torch.testing.assert_close(fused.average, plain.average, rtol=1e-8, atol=1e-8)


def test_functional_call_uses_the_tensors_that_it_is_given():
    fused, plain = pair()
    given = {name: p.detach() * 1.5 for name, p in fused.named_parameters()}
    buffers = {name: b.clone() for name, b in fused.named_buffers() if "running" in name}
    found = [torch.func.functional_call(m, given | buffers, (images(),)) for m in (fused, plain)]
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def test_second_derivatives():
    torch.manual_seed(0)
    fused, plain = sparse_pair(MODELS["vgg"]())
    found = []
    for model in (fused, plain):
        x = images().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_a_fused_block(reentrant):
    fused, plain = pair()
    found = []
    for model in (fused, plain):
        x = torch.randn(2, 8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x.requires_grad_()
        y = checkpoint(model.layer1, x, use_reentrant=reentrant)
        y.square().sum().backward()
        found.append({"x": x.grad} | {n: b.clone() for n, b in model.named_buffers()})
    check_same(*found, 1e-8)


def test_flops_are_counted_as_before():
    counts = []
    for model in pair():
        with FlopCounterMode(display=False) as counter:
            model(images()).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_vmap_and_a_trace_run_as_before():
    fused, plain = pair()
    fused.eval(), plain.eval()
    x = torch.stack([images(), images() + 1])
    with torch.no_grad():
        found = [torch.vmap(model)(x) for model in (fused, plain)]
        torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)
        traced = torch.jit.trace(fused, images())
        torch.testing.assert_close(traced(images()), plain(images()), rtol=1e-8, atol=1e-8)
