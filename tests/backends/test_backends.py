"""Which kernels run where, what is refused where there are none, and how show_config says it."""

from __future__ import annotations

import builtins
import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers.nn_cases import layer

from dsr_kernels import show_config
from dsr_kernels.backends import cpu, devices, dispatch, native
from dsr_kernels.backends.dispatch import Backend
from dsr_kernels.ops import library

GPU = torch.device("cuda", 0)


@pytest.fixture
def without_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_cuda", None)


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args, **kwargs) -> ModuleType:
        if name.partition(".")[0] == "triton":
            raise ImportError("No module named 'triton'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_triton_serves_gpus_where_there_are_no_cuda_kernels(without_cuda_kernels) -> None:
    pytest.importorskip("triton")
    from dsr_kernels.backends.triton import launch

    assert dispatch.gpu_backend(GPU) is launch


def test_cuda_kernels_come_before_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ModuleType("dsr_kernels.backends.cuda.launch")
    monkeypatch.setattr(native, "_cuda", SimpleNamespace(architectures="80-real,120"))
    monkeypatch.setitem(sys.modules, "dsr_kernels.backends.cuda.launch", ours)
    room = importlib.import_module("dsr_kernels.backends.cuda")
    monkeypatch.setattr(room, "launch", ours, raising=False)
    assert dispatch.gpu_backend(GPU) is ours


def test_gpus_fuse_with_the_cuda_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsr_kernels.backends.cuda import fused

    monkeypatch.setattr(native, "_cuda", SimpleNamespace())
    assert dispatch.fused_backend(GPU) is fused
    monkeypatch.setattr(native, "_cuda", None)
    assert dispatch.fused_backend(GPU) is None


FUSED = [name for name in vars(dispatch.FusedBackend) if name.startswith("sparse_")]


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("backend", ["backends.cuda.fused", "ops.fused.composed"])
def test_every_fused_backend_takes_the_same_arguments(name: str, backend: str) -> None:
    _, *expected = inspect.signature(getattr(dispatch.FusedBackend, name)).parameters
    function = getattr(importlib.import_module(f"dsr_kernels.{backend}"), name)
    assert [*inspect.signature(function).parameters] == expected


def test_a_gpu_without_any_kernels_is_refused_in_words(
    without_cuda_kernels, without_triton
) -> None:
    with pytest.raises(NotImplementedError, match=r"on cuda:0, but .* pip install triton, or"):
        dispatch.gpu_backend(GPU)


def test_other_devices_are_refused_in_words() -> None:
    with pytest.raises(NotImplementedError, match="on xpu:1, but there are kernels for CPUs and"):
        dispatch.gpu_backend(torch.device("xpu", 1))


OPERATIONS = [name for name in vars(Backend) if name.startswith("sparse_")]


def test_the_ops_run_on_the_kernels_of_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def recorded(name: str) -> Callable[..., torch.Tensor]:
        def call(*args: object) -> torch.Tensor:
            called.append(name)
            return getattr(cpu, name)(*args)

        return call

    def no_gpu(device: torch.device) -> Backend:
        raise AssertionError(f"asked for the kernels of {device}")

    recorder = SimpleNamespace(**{name: recorded(name) for name in OPERATIONS})
    monkeypatch.setattr(library, "cpu", recorder)
    monkeypatch.setattr(dispatch, "gpu_backend", no_gpu)
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    layer(4, 6, 3)(x.half()).sum().backward()  # the kernels take no float16, so nothing is prepared
    assert sorted(called) == sorted(OPERATIONS)
    assert len(OPERATIONS) == 4


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_backend_takes_the_same_arguments(name: str) -> None:
    """In this order and under these names; mypy holds their types against the Protocol."""
    backends = [cpu, importlib.import_module("dsr_kernels.backends.cuda.launch")]
    if native.triton_version() is not None:
        backends.append(importlib.import_module("dsr_kernels.backends.triton.launch"))
    _, *expected = inspect.signature(getattr(Backend, name)).parameters
    for backend in backends:
        assert [*inspect.signature(getattr(backend, name)).parameters] == expected


def test_show_config_says_what_runs_on_gpus(without_cuda_kernels, capsys) -> None:
    triton = pytest.importorskip("triton")
    show_config()
    assert f"builds them, where nvcc is); Triton {triton.__version__} takes over" in (
        capsys.readouterr().out
    )


def test_show_config_without_triton(without_cuda_kernels, without_triton, capsys) -> None:
    show_config()
    assert "where nvcc is), and no Triton: sparse modules run on the CPU only" in (
        capsys.readouterr().out
    )


def test_show_config_of_gpus(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    built = {"architectures": "80-real,120", "toolkit_version": 12040, "emulated": False}
    monkeypatch.setattr(native, "_cuda", SimpleNamespace(**built))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    show_config()
    printed = capsys.readouterr().out
    assert "\nCUDA kernels for 80-real, 120 (built with CUDA 12.4)\n" in printed
    assert "\nGPU          no CUDA device: " in printed
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    card = SimpleNamespace(name="card", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    show_config()
    listed = "card (compute capability 9.0, 80 GiB)"
    assert capsys.readouterr().out.endswith(f"\nGPU          {listed}; {listed}\n")


def test_why_there_is_no_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check that you have one.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert devices.why_no_cuda() == (
        f"no CUDA device: this torch ({torch.__version__}) is built without CUDA"
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", no_driver)
    assert devices.why_no_cuda() == "no CUDA device: Found no NVIDIA driver on your system"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.why_no_cuda() is None
