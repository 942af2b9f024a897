"""Records, tiles, provenance and the package's own front door."""

import subprocess

import pytest

import ntk_robust
from ntk_robust._core import Series, SilentProgress, Table, provenance, tiles


@pytest.mark.parametrize(("size", "tile"), [(0, 3), (1, 3), (3, 3), (7, 3), (9, 100)])
def test_tiles_cover_a_range_once_and_in_order(size, tile):
    covered = [index for part in tiles(size, tile) for index in range(size)[part]]
    assert covered == list(range(size))
    assert all(part.stop - part.start <= tile for part in tiles(size, tile))


@pytest.mark.parametrize(("size", "tile", "message"), [(5, 0, "tile is 0"), (-1, 2, "size is -1")])
def test_impossible_tiles_are_refused(size, tile, message):
    with pytest.raises(ValueError, match=message):
        tiles(size, tile)


def test_a_series_with_parts_of_different_length_is_refused():
    with pytest.raises(ValueError, match=r"'loss' has parts of \[1, 2\] points"):
        Series("loss", [1.0, 2.0], [1.0])


def test_a_table_with_a_short_row_is_refused():
    with pytest.raises(ValueError, match="a row of 1 cells under 2 columns"):
        Table("t", "T", ["a", "b"], [[1.0]])


def test_provenance_names_versions_device_and_the_commit_of_this_checkout():
    record = provenance()
    assert record["versions"]["jax"]
    assert record["versions"]["ntk-robust"] == ntk_robust.__version__
    assert record["device"]["count"] >= 1
    assert record["default_float"] == "float64"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    assert (record["git_commit"] or "").startswith(commit)


def test_silent_progress_takes_every_call():
    with SilentProgress().task("work", 3) as task:
        task.advance()
        task.advance(2, loss=0.5)


def test_an_unknown_sub_package_is_an_attribute_error_that_lists_them():
    with pytest.raises(AttributeError, match=r"'kernel'; its sub-packages are attacks, certify, constructions, data"):
        ntk_robust.kernel  # noqa: B018
