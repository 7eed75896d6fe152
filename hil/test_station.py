"""A station's QRNG answers over its real USB stack."""

import pytest


@pytest.mark.hil
@pytest.mark.needs("qrng")
def test_the_stations_qrng_identifies_itself() -> None:
    pytest.fail("a station was named, but no rig is built yet that could open its devices")
