"""The model of choose_config is calibrated on one half of published times, and says how far off
it is on the other.
"""

import pytest
from paths import ROOT

from nvfp4.backends.cutedsl.gemm.choose import B200
from nvfp4.bench.calibration import (
    FITTED,
    errors_of,
    fit,
    held_out,
    modelled,
    published,
    ratios,
    table,
    training,
)

ROWS = published()


def _fitted(machine):
    return [getattr(machine, name) for name in FITTED]


def test_every_second_row_is_held_out():
    assert len(ROWS) >= 15
    assert training(ROWS) + held_out(ROWS) == [*ROWS[0::2], *ROWS[1::2]]


def test_the_constants_are_those_that_the_training_half_gives():
    assert _fitted(B200) == pytest.approx(_fitted(fit(training(ROWS))), rel=2e-3)


def test_the_fit_finds_the_machine_that_times_come_from():
    machine = B200._replace(clock=1.5e9, launch=4e-6, epilogue=1e-6)
    times = [modelled(row, machine).time * 1e6 for row in training(ROWS)]
    rows = [row._replace(us=(us, us)) for row, us in zip(training(ROWS), times, strict=True)]
    assert _fitted(fit(rows)) == pytest.approx(_fitted(machine), rel=1e-3)


def test_the_model_was_optimistic():
    """It gave half of the published times for many shapes; now it is right in the middle."""
    errors = errors_of(ratios(held_out(ROWS), B200))
    assert errors.median == pytest.approx(1, abs=0.1)
    old = B200._replace(clock=1.85e9, launch=2.5e-6, epilogue=0.0)
    assert errors_of(ratios(held_out(ROWS), old)).median < 0.8


@pytest.mark.parametrize("half", [training, held_out])
def test_the_page_shows_the_error_and_the_table(half):
    page = (ROOT / "docs" / "performance.md").read_text()
    assert table(ROWS, B200) in page
    assert f"{half.__name__.replace('_', '-').capitalize()} half: " in page
    assert f"half: {errors_of(ratios(half(ROWS), B200))}." in page
