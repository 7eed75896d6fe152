"""Which device stands behind a section of the configuration: the one place that knows emulated from real."""

from qkdnode.config import LinkSection, QrngSection
from qkdnode.device.emulated import EmulatedBackend, EmulatedDevice, emulated_qrng, emulated_rx, emulated_tx
from qkdnode.device.transport import BackendFactory, libusb_backend
from qkdnode.ids import ALICE


def _plugged_in(device: EmulatedDevice) -> BackendFactory:
    """A bus on which the device stays what it is however often the driver makes a new context."""
    return lambda: EmulatedBackend([device])


def module_backend(link: LinkSection) -> BackendFactory:
    """How the driver of a link's module reaches the bus."""
    optics = link.module.emulated
    if optics is None:
        return libusb_backend
    make = emulated_tx if link.role == ALICE else emulated_rx
    return _plugged_in(make(link.module.serial, optics))


def qrng_backend(qrng: QrngSection) -> BackendFactory:
    """How the driver of a QRNG reaches the bus."""
    if qrng.emulated is None:
        return libusb_backend
    return _plugged_in(emulated_qrng(qrng.serial, qrng.emulated))
