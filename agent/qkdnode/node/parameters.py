"""What both ends of a link must agree on, and what its module must agree with."""

from typing import Any

from qkdnode.config import LinkSection
from qkdnode.device.identity import DeviceConfig, DeviceInfo
from qkdnode.ids import ALICE
from qkdnode.wire.codec import VERSION
from qkdnode.wire.messages import Parameters

NS_PER_S = 10**9


def agreed_parameters(link: LinkSection) -> Parameters:
    """What both ends of a link compare when they open it."""
    distill = link.distill
    return Parameters(
        protocol=VERSION,
        link=link.name,
        slot_rate_hz=distill.slot_rate_hz,
        window_slots=distill.window_slots,
        p_z=distill.p_z,
        intensities=distill.intensities,
        intensity_probabilities=distill.intensity_probabilities,
        method=distill.method,
        booking=distill.booking,
        family=distill.family,
        eps_sec=distill.eps_sec,
        eps_cor=distill.eps_cor,
        qber_limit=distill.qber_limit,
        batch_bits=distill.batch_bits,
        batch_max_bits=distill.batch_max_bits,
        dead_slots=-(-distill.dead_time_ns * distill.slot_rate_hz // NS_PER_S),
    )


def module_difference(section: LinkSection, info: DeviceInfo | None, config: DeviceConfig | None) -> str | None:
    """What a module does otherwise than its link is configured for; None if they agree."""
    if info is None or config is None:
        return "the module has not said how it works"
    distill = section.distill
    values: list[tuple[str, Any, Any]] = [
        ("slot_rate_hz", distill.slot_rate_hz, info.slot_rate_hz),
        ("p_z", round(distill.p_z, 6), round(config.p_z, 6)),
    ]
    if section.role == ALICE:
        values += [
            ("intensities", _rounded(distill.intensities), _rounded(config.intensities)),
            (
                "intensity_probabilities",
                _rounded(distill.intensity_probabilities),
                _rounded(config.intensity_probabilities),
            ),
        ]
    else:
        values.append(("dead_time_ns", distill.dead_time_ns, config.dead_time_ns))
    for name, wanted, found in values:
        if wanted != found:
            return f"`{name}` is {wanted} in link {section.name!r} and {found} in the module: make them equal"
    return None


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values)
