"""Traces of availability: read in milliseconds, every wrong row named with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtide.errors import ConfigError
from simulator.fleet.availability import Availability
from simulator.fleet.scenario import AvailabilityConfig
from simulator.fleet.trace import read_trace

HEADER = "device,from_s,until_s\n"


def write(folder: Path, rows: str, header: str = HEADER) -> Path:
    path = folder / "trace.csv"
    path.write_text(header + rows)
    return path


def test_rows_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path, "1, 5, 6.5\n0,10,20\n0,0,1.0005\n")
    assert read_trace(path, 3, None) == [[(0, 1_000), (10_000, 20_000)], [(5_000, 6_500)]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "has no rows"),
        ("0,0,1\n\n", "line 3 is '', expected device,from_s,until_s"),
        ("0,0,1\n0,3\n", "line 3 is '0,3', expected device,from_s,until_s"),
        ("0,0,1\n0,,3\n", "line 3 is '0,,3', expected device,from_s,until_s"),
        ("0,0,1,2\n", "line 2 is '0,0,1,2'"),
        ("0,0,1\n0,two,3\n", "line 3: from_s is 'two', expected a number from 0 to 1e+09"),
        ("0,0,nan\n", "line 2: until_s is 'nan', expected a number"),
        ("0,-1,3\n", "line 2: from_s is '-1', expected a number from 0"),
        ("x,1,3\n", "line 2: device is 'x', expected a number"),
        ("0.5,1,3\n", "line 2: device is '0.5', expected a whole number below 3, fleet.devices"),
        ("3,1,3\n", "line 2: device is '3', expected a whole number below 3, fleet.devices"),
        ("0,3,3\n", "line 2: until_s is 3, expected more than from_s 3"),
        ("0,3,2\n", "line 2: until_s is 2, expected more than from_s 3"),
        ("0,0,101\n", "line 2: until_s is 101, expected at most repeat_s 100"),
        ("0,5,9\n0,0,6\n", "line 2: device 0 is on from 5 s, expected 6 s or later: it overlaps"),
        ("0,0,6\n0,0,6\n", "line 3: device 0 is on from 0 s, expected 6 s or later: it overlaps"),
        ("0,0,6\n2,0,6\n", "has no row of device 1, though one of device 2"),
    ],
)
def test_each_wrong_row_is_named(tmp_path: Path, rows: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        read_trace(write(tmp_path, rows), 3, 100)
    assert "trace.csv" in str(error.value)


cells = st.one_of(
    st.sampled_from(["", "0", "1", "2", "5.5", "1e400", "nan", "-0", " 3 ", "1_0", '"', "\0"]),
    st.text(max_size=4),
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.lists(cells, max_size=4), max_size=6))
def test_anything_is_a_trace_or_refused(tmp_path: Path, rows: list[list[str]]) -> None:
    path = tmp_path / "trace.csv"
    text = HEADER + "".join(",".join(row) + "\n" for row in rows)
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        found = read_trace(path, 3, None)
    except ConfigError:
        return
    assert all(start < until for device in found for start, until in device)


def test_no_file_no_csv_other_columns(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none.csv", 3, None)
    with pytest.raises(ConfigError, match="line 1: the columns are 'device,from,until', expected"):
        read_trace(write(tmp_path, "0,1,2\n", "device,from,until\n"), 3, None)
    with pytest.raises(ConfigError, match="line 1: the columns are ''"):
        read_trace(write(tmp_path, "", ""), 3, None)
    (tmp_path / "trace.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not CSV"):
        read_trace(tmp_path / "trace.csv", 3, None)


def test_a_fleet_larger_than_the_trace_shares_it(tmp_path: Path) -> None:
    path = write(tmp_path, "0,0,10\n0,10,20\n1,90,100\n1,0,5\n")
    config = AvailabilityConfig(kind="trace", trace=path)
    once = Availability(config, 0, devices=4, hours_max=1)
    assert [list(once.intervals(device)) for device in range(4)] == 2 * [
        [(0, 20_000)],
        [(0, 5_000), (90_000, 100_000)],
    ]


def test_a_trace_that_repeats_itself(tmp_path: Path) -> None:
    path = write(tmp_path, "0,90,100\n0,0,5\n")
    config = AvailabilityConfig(kind="trace", trace=path, repeat_s=100)
    again = Availability(config, 0, devices=1, hours_max=250 / 3600)
    assert list(again.intervals(0)) == [(0, 5_000), (90_000, 105_000), (190_000, 205_000)]
