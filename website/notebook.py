"""docs/tutorial.ipynb: run it and keep what it says; show it as a page of the site.

    python website/notebook.py docs/tutorial.ipynb   # `make tutorial`

It needs nbclient and ipykernel for that. To show it takes nothing but Python.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any


def to_markdown(notebook: str, stem: str) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and its pictures, PNG, by names that begin with `stem`."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(_fence(source, "python"))
        for output in cell["outputs"]:
            png = output.get("data", {}).get("image/png")
            if png:
                name = f"{stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(png))
                parts.append(f"![{cell['metadata'].get('alt', 'What the cell shows')}]({name})")
            else:
                parts.append(_fence(text_of(output).rstrip(), "{ .text .output }"))
    return "\n\n".join(parts) + "\n", pictures


def text_of(output: dict[str, Any]) -> str:
    """What an output of a cell says in text."""
    return "".join(output["text"] if "text" in output else output["data"]["text/plain"])


def _fence(text: str, kind: str) -> str:
    return f"```{kind}\n{text}\n```"


def execute(path: Path) -> None:
    """Runs all cells from the start and writes the notebook with what they said.

    Nothing is kept that changes from run to run by itself: times, versions, numbers of processes.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    language = {"name": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": language})
    nbformat.write(notebook, path)


if __name__ == "__main__":
    execute(Path(sys.argv[1]))
