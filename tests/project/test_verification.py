"""The tables of what was executed where follow from recorded results."""

import pytest
from paths import ROOT

from nvfp4.bench import verification


@pytest.mark.parametrize("page, name", verification.tables())
def test_a_table_is_not_written_by_hand(page, name):
    text = (ROOT / page).read_text()
    assert verification.filled(text, name, verification.tables()[page, name]) == text


def test_no_cell_says_compiled():
    kinds = ("hardware (", "emulated (CI)", "refused, because it needs ")
    assert all(cell.startswith(kinds) for cell in verification.current().values())


def test_hardware_is_named_by_commit_and_gpu():
    cells = verification.hardware()
    assert cells["triton", "quantize", 90] == "hardware (4a6d295, H200)"
    assert {sm for _, _, sm in cells} == {90}
