"""What the GPU tests share: measured numbers are printed at the end; a lost device ends the run."""

from __future__ import annotations

import pytest
import torch

NOTES = pytest.StashKey[list]()


@pytest.fixture
def note(request):
    """note(text): a line of the summary that follows the tests."""
    return request.config.stash.setdefault(NOTES, []).append


@pytest.fixture(autouse=True)
def _finished(request):
    """An error of a kernel belongs to the test that launched it, and no later one can run."""
    yield
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            pytest.exit(f"the device is lost after {request.node.nodeid}: {error}", returncode=3)


def pytest_sessionfinish(session, exitstatus) -> None:
    """Where all of tests/gpu was skipped and nothing else was asked for, that is no failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter is not None and reporter.stats.get("skipped")
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and skipped:
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter, config) -> None:
    notes = config.stash.get(NOTES, [])
    if notes:
        terminalreporter.section("measured")
        for line in notes:
            terminalreporter.write_line(line)
