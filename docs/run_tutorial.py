"""Executes tutorial.ipynb and writes its outputs into it: ``python docs/run_tutorial.py``.

The outputs are kept in the repository, so that the notebook can be read where nothing runs it, on a
repository's page or in the built documentation. tests/test_docs.py executes it, too.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("tutorial.ipynb")


def execute() -> nbformat.NotebookNode:
    """The notebook with new outputs; an exception if a cell raises one."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # of `!dcnzoo train …`
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=900,
        startup_timeout=300,
        record_timing=False,  # times of day would change the file at every run
        coalesce_streams=True,
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    notebook = client.execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/jpeg" in output.get("data", {}):  # of the two formats of a picture, the smaller one
                output.data.pop("image/png", None)
    return notebook


if __name__ == "__main__":
    nbformat.write(execute(), NOTEBOOK)
