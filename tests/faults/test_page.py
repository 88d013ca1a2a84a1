# SPDX-License-Identifier: Apache-2.0
"""The page says what the tests hold."""

from tests.faults.matrix import FAULTS
from tests.faults.page import PAGE, with_table
from tests.faults.phases import Phase


def test_the_page_has_the_table_of_today() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run `make reliability`"


def test_every_fault_has_a_cell_for_every_phase() -> None:
    assert all(set(fault.promises) == set(Phase) for fault in FAULTS)
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)
