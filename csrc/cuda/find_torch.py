"""Prints the CUDA version of the torch that this package will meet; nothing if there is none.

CMake runs this as `python -I`: that also looks past the isolation that pip builds in, to what is
installed beside it. A build tool that makes an environment of its own for the build hides that.
Then the environment that is active, if one is, tells. torch itself is not imported.
"""

import importlib.util
import os
import re
from pathlib import Path


def folders():
    """Where torch may lie."""
    found = importlib.util.find_spec("torch")
    if found is not None:
        yield from map(Path, found.submodule_search_locations or ())
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if os.environ.get(name):
            yield from Path(os.environ[name]).glob("lib/python3*/site-packages/torch")


def cuda_version(folder):
    """What torch.version.cuda is; None without CUDA."""
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=\n]*= *['\"]([0-9.]+)", text, re.MULTILINE)
    return found and found.group(1)


print(next(filter(None, map(cuda_version, folders())), ""))
