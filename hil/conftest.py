"""Hardware-in-the-loop tests run against a named station, and are skipped without one."""

from pathlib import Path

import pytest

STATIONS = Path(__file__).parent / "stations"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--station", default=None, help="run hil tests on hil/stations/NAME.yaml")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    name = config.getoption("--station")
    if name is None:
        for item in items:
            if "hil" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no station is named: give --station NAME"))
    elif not (STATIONS / f"{name}.yaml").is_file():
        raise pytest.UsageError(f"no station {name!r}: there is no hil/stations/{name}.yaml")
