""".ci/toolkit brings nvcc to the place that the workflow for wheels names in advance."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SYSTEM = "/usr/bin:/bin"
# Instead of Python: an environment whose pip lays down what NVIDIA's wheels do.
PYTHON = """#!/bin/sh
mkdir -p "$3/bin"
cat >"$3/bin/pip" <<'EOF'
#!/bin/sh
home=build/toolkit/lib/python3.99/site-packages/nvidia/cu13
mkdir -p $home/bin $home/lib
touch $home/bin/nvcc $home/lib/runtime
EOF
chmod +x "$3/bin/pip"
"""


def workflow() -> tuple[str, dict[str, str]]:
    """The command that cibuildwheel runs first, and the variables it sets for that, too."""
    text = (ROOT / ".github/workflows/wheels.yml").read_text(encoding="utf-8")
    (command,) = re.findall(r"CIBW_BEFORE_ALL: (.+)", text)
    (block,) = re.findall(r"CIBW_ENVIRONMENT: >-\n((?: {8}.+\n)+)", text)
    return command, dict(line.split("=", 1) for line in block.split())


@pytest.fixture
def project(tmp_path):
    (tmp_path / ".ci").mkdir()
    script = (ROOT / ".ci/toolkit").read_text(encoding="utf-8")
    assert "/usr/local/cuda" in script  # where this machine may have a toolkit
    (tmp_path / ".ci/toolkit").write_text(script.replace("/usr/local/cuda", "/nowhere"))
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def shell(project: Path, command: str, **variables: str) -> str:
    known = {"PATH": SYSTEM, "PYTHON": str(project / "python"), **variables}
    line = ["bash", "-euc", command]
    options = {"cwd": project, "env": known, "capture_output": True, "text": True}
    return subprocess.run(line, check=True, **options).stdout


@pytest.mark.skipif(bool(shutil.which("nvcc", path=SYSTEM)), reason="the system has an nvcc")
def test_the_workflow_names_what_the_toolkit_brings(project):
    command, variables = workflow()
    assert not re.search(r"[*$`]", "".join(variables.values())), "cibuildwheel has no shell"
    here = {name: value.replace("/project", str(project)) for name, value in variables.items()}
    command = re.sub(r"PYTHON=\S+", f"PYTHON={project / 'python'}", command)
    shell(project, command, **here)
    assert Path(here["CUDACXX"]).is_file()
    assert (Path(here["CUDA_HOME"]) / "lib64/runtime").is_file()
    named = shell(project, 'source .ci/toolkit; printf "$CUDA_HOME $CUDACXX"').split()
    assert named == [here["CUDA_HOME"], here["CUDACXX"]]


def test_an_nvcc_that_is_there_is_left_alone(project):
    own = project / "own"
    own.mkdir()
    (own / "nvcc").write_text("#!/bin/sh\n")
    (own / "nvcc").chmod(0o755)
    said = 'source .ci/toolkit; printf "${CUDACXX:-none}"'
    assert shell(project, said, PATH=f"{own}{os.pathsep}{SYSTEM}") == "none"
    assert shell(project, said, CUDACXX="/elsewhere/nvcc") == "/elsewhere/nvcc"
    assert not (project / "build").exists()
