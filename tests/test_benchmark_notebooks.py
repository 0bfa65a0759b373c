"""The benchmark of what a reader waits for, on notebooks of one cell."""

import nbformat
import pytest

from benchmarks import notebooks as benchmark


def notebook(source):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])


@pytest.mark.slow
def test_each_notebook_has_a_row_and_a_failure_is_told(tmp_path):
    for number in range(2):
        nbformat.write(notebook("print(1)"), tmp_path / f"0{number}_fine.ipynb")
    table = benchmark.notebooks(2, tmp_path).set_index("notebook")["seconds"]
    assert list(table.index) == ["00_fine", "01_fine", "all, 2 at once"]
    # both ran at once, not one after the other
    assert table.iloc[:2].max() <= table.iloc[2] < table.iloc[:2].sum()
    nbformat.write(notebook("raise OSError('no room')"), tmp_path / "02_bad.ipynb")
    with pytest.raises(RuntimeError, match=r"(?s)02_bad\.ipynb: .*no room"):
        benchmark.notebooks(1, tmp_path)


def test_the_first_use_reads_activations():
    space = {}
    exec(benchmark.FIRST_USE + "\nfound = ctt.residual_stream(checkpoint, suite.text(400))", space)
    assert space["found"].shape[-1] == space["checkpoint"].d_model
