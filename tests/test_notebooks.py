"""The notebooks run from top to bottom in an empty folder, and are stored without outputs."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def executed(path, folder):
    """What the cells printed or showed, as one text."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text") or output["data"].get("text/plain", "") for output in outputs)


def test_both_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["audit", "quickstart"]


@notebooks
def test_outputs_are_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.execution_count, cell.outputs, dict(cell.metadata)) for cell in cells] == [(None, [], {})] * len(
        cells
    )
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@notebooks
def test_colab_opens_from_the_first_cell(path):
    assert "(https://colab.research.google.com/" in nbformat.read(path, as_version=4).cells[0].source


@pytest.mark.slow
def test_quickstart_forgets_keeps_and_loads_with_stock_peft(tmp_path):
    (path,) = (path for path in NOTEBOOKS if path.stem == "quickstart")
    text = executed(path, tmp_path)
    (forget,) = re.findall(r"eval_acc_forget +([\d.]+)% → +([\d.]+)%", text)
    (retain,) = re.findall(r"eval_acc_retain +([\d.]+)% → +([\d.]+)%", text)
    assert float(forget[0]) > 80 > 20 > float(forget[1])
    assert float(retain[1]) > float(retain[0]) - 5 > 85
    assert re.search(r"still called three: [0-9] of 4\d", text)


@pytest.mark.slow
def test_audit_tells_a_silent_head_from_a_retrained_model(tmp_path):
    (path,) = (path for path in NOTEBOOKS if path.stem == "audit")
    text = executed(path, tmp_path)
    rows = re.findall(r"^(.{18}) (.{36}) original +([\d.]+) +forgotten +([\d.]+) +retrained +([\d.]+)", text, re.M)
    found = {(title.strip(), setting.strip()): [float(value) for value in values] for title, setting, *values in rows}
    original, forgotten, retrained = found["the head's answer", "all classes"]
    assert original > 80 > 20 > max(forgotten, retrained)
    assert found["relearning", "LoRA, 4-shot"][0] > 80  # the attack works where there is something to find
    assert re.search(r"\d points", text)  # the verdict
    assert (tmp_path / "report" / "report.html").is_file()
