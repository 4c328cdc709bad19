"""Tables of numbers read back: what a kill leaves, and what is no table."""

import pytest

from dsr_kernels.errors import UsageError
from dsr_kernels.training.run.csv_files import read_csv


@pytest.mark.parametrize("cut", ["", "2", "2,0", "2,0.5"])
def test_a_last_row_that_a_kill_has_cut_is_left_out(cut, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("epoch,loss\n1,0.25\n" + cut)
    assert read_csv(path) == [{"epoch": 1.0, "loss": 0.25}]


@pytest.mark.parametrize(
    "text", [b"a,b\n1\n2,3\n", b"a,b\n1,2,3\n", b"a,b\n1,x\n", b"a,b\n\xff,1\n"]
)
def test_what_is_no_table_of_numbers_is_named(text, tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(text)
    with pytest.raises(UsageError, match=r"table\.csv: not a table of numbers"):
        read_csv(path)
