"""Teams of processes: gloo's everywhere, nccl's where there are as many GPUs."""

from __future__ import annotations

import pytest
import torch
from helpers.team import Team


class Teams:
    """One team of each size and backend; a new one after a test that lost it."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self.folders, self.teams = folders, {}

    def get(self, size: int, backend: str) -> Team:
        team = self.teams.get((size, backend))
        if team is None or not team.is_there:
            team = Team(size, backend, self.folders.mktemp(f"team{size}"))
            self.teams[size, backend] = team
        return team


@pytest.fixture(scope="session")
def teams(tmp_path_factory):
    all_teams = Teams(tmp_path_factory)
    yield all_teams
    for team in all_teams.teams.values():
        team.end()


def _team(request: pytest.FixtureRequest, size: int) -> Team:
    if request.param == "nccl" and torch.cuda.device_count() < size:
        pytest.skip(f"nccl needs {size} GPUs, there are {torch.cuda.device_count()}")
    return request.getfixturevalue("teams").get(size, request.param)


@pytest.fixture(params=["gloo", "nccl"])
def two(request):
    return _team(request, 2)


@pytest.fixture(params=["gloo", "nccl"])
def four(request):
    return _team(request, 4)
