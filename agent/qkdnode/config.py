"""The configuration of a node: one TOML file, decoded strictly into frozen structs.

Relative paths are relative to the file. Unknown keys, wrong types and values out of range are ConfigErrors that name
the key.
"""

import datetime
import ipaddress
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from qkdnode.errors import ConfigError

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.-]{0,30}\Z")]
Serial = Annotated[str, Meta(min_length=1, max_length=16)]
Endpoint = Annotated[str, Meta(pattern=r"^(tcp://[^\s]+:[0-9]+|ipc://[^\s]+)\Z")]
TopicPattern = Annotated[str, Meta(pattern=r"^(\*|[a-z0-9][a-z0-9._/-]{0,125}(\.\*)?)\Z")]
Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, Meta(gt=0.0, le=1e9)]  # and so finite, as every number must be
UserId = Annotated[int, Meta(ge=0, lt=2**32)]
Service = Annotated[str, Meta(pattern=r"^[^\s\x00-\x1f\x7f]{1,255}\Z")]  # a SAN of a certificate, a SPIFFE id
Services = Annotated[tuple[Service, ...], Meta(max_length=16)]
Backend = Literal["emulated", "libusb"]
Label = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,64}\Z")]  # for people
AssetKind = Literal[
    "node", "link", "module", "qrng", "package", "native", "crypto-module", "platform", "application", "operator"
]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table of the file."""


class EmulatedOptics(Section, frozen=True):
    """The world that emulated QKD modules share: seed, time and physics of one quantum channel.

    Both ends of an emulated link carry the same values. Only device/ reads them; the protocol never does.
    """

    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    epoch_ns: Annotated[int, Meta(ge=0, le=2**63 - 1)]  # wall clock at slot 0
    slot_rate_hz: Annotated[int, Meta(ge=1_000, le=100_000_000)] = 20_000_000
    p_z: Probability = 0.85  # transmitter
    receiver_p_z: Probability = 0.85
    intensities: tuple[Positive, ...] = (0.5, 0.15)  # mean photon number, falling; 2 (one decoy) or 3 (two decoys)
    intensity_probabilities: tuple[Probability, ...] = (0.6, 0.4)
    loss_db: Annotated[float, Meta(ge=0.0, le=60.0)] = 5.5  # channel and detectors together
    misalignment: Probability = 0.015  # error probability of a detected signal photon
    dark_probability: Probability = 1e-6  # per detector and slot
    dead_time_ns: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 50
    clock_offset_ns: Annotated[int, Meta(ge=-(10**12), le=10**12)] = 0  # receiver clock minus transmitter clock
    eavesdrop: Probability = 0.0  # share of slots intercepted and resent
    eavesdrop_p_z: Probability | None = None  # Eve's probability of measuring the key basis; None: p_z

    def __post_init__(self) -> None:
        if len(self.intensities) not in (2, 3) or len(self.intensities) != len(self.intensity_probabilities):
            raise ValueError("`intensities` and `intensity_probabilities` need two or three values each")
        if abs(sum(self.intensity_probabilities) - 1) > 1e-9:
            raise ValueError("`intensity_probabilities` must sum to 1")
        if any(a <= b for a, b in zip(self.intensities, self.intensities[1:], strict=False)):
            raise ValueError("`intensities` must fall")


class EmulatedEntropy(Section, frozen=True):
    """An emulated QRNG: its seed and the defects of its raw stream."""

    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    epoch_ns: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    bytes_per_second: Annotated[int, Meta(ge=1_000, le=100_000_000)] = 1_000_000
    bias: Annotated[float, Meta(ge=-0.5, le=0.5)] = 0.01  # P(bit = 1) - 1/2
    # from there on the raw stream repeats one byte
    stuck_after_bytes: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None


class RootKeySource(Section, frozen=True):
    """Where the vault's root key comes from: exactly one of a passphrase file and a systemd credential."""

    passphrase_file: str | None = None
    credential: str | None = None

    def __post_init__(self) -> None:
        if (self.passphrase_file is None) == (self.credential is None):
            raise ValueError("`root_key` needs either `passphrase_file` or `credential`")


class NodeSection(Section, frozen=True):
    """This node: its identity and its vault."""

    name: Name
    identity: str  # NAME.identity, made by `qkdnode provision node`
    vault: str  # a file, made at the first start in a directory of mode 0700
    root_key: RootKeySource
    # days that this node has seen later than this are a mistake of its clock, now put right
    clock_was_wrong_after: datetime.date | None = None


class SupplySection(Section, frozen=True):
    """Where applications fetch their keys."""

    listen: Endpoint


class ApplicationSection(Section, frozen=True):
    """An application that may fetch keys here."""

    name: Name
    public: str  # NAME.public, made by `qkdnode provision application`
    services: Services = ()  # as which it is known: its keys are bound to them


class ControlSection(Section, frozen=True):
    """The local socket at which operators reach the agent."""

    socket: str  # a path of at most 107 bytes, in a directory of mode 0700
    uids: Annotated[tuple[UserId, ...], Meta(max_length=64)] = ()  # who may connect beside the agent's own user


class OperatorSection(Section, frozen=True):
    """A person who may ask at the control socket, and in which roles."""

    name: Name
    public: str  # NAME.public, made by `qkdnode provision operator`
    roles: Annotated[
        tuple[Literal["operator", "security-officer", "auditor", "maintainer"], ...], Meta(min_length=1, max_length=4)
    ]

    def __post_init__(self) -> None:
        if len(set(self.roles)) < len(self.roles):
            raise ValueError(f"`roles` of operator {self.name!r} names a role twice")


class QrngSection(Section, frozen=True):
    """One QRNG that feeds the entropy pool."""

    serial: Serial
    backend: Backend
    min_entropy_per_byte: Annotated[float, Meta(gt=0.0, le=8.0)] = 6.0
    emulated: EmulatedEntropy | None = None

    def __post_init__(self) -> None:
        if (self.backend == "emulated") != (self.emulated is not None):
            raise ValueError('`emulated` goes with `backend = "emulated"`')


class ModuleSection(Section, frozen=True):
    """The QKD module at this end of a link."""

    serial: Serial
    backend: Backend
    emulated: EmulatedOptics | None = None

    def __post_init__(self) -> None:
        if (self.backend == "emulated") != (self.emulated is not None):
            raise ValueError('`emulated` goes with `backend = "emulated"`')


class DistillSection(Section, frozen=True):
    """How key is made. What both ends must have equal is compared when the link opens: all but `profile`,
    `batch_deadline_s` and `click_share_limit`."""

    slot_rate_hz: Annotated[int, Meta(ge=1_000, le=100_000_000)] = 20_000_000
    window_slots: Annotated[int, Meta(ge=1_024, le=2**24, multiple_of=2)] = 2**21
    p_z: Probability = 0.85
    intensities: tuple[Positive, ...] = (0.5, 0.15)
    intensity_probabilities: tuple[Probability, ...] = (0.6, 0.4)
    method: Literal["rusca2018/1", "lim2014/1"] = "rusca2018/1"
    booking: Literal["both"] = "both"
    family: Literal["modified", "toeplitz"] = "modified"
    eps_sec: Annotated[float, Meta(gt=0.0, lt=1.0)] = 1e-9
    eps_cor: Annotated[float, Meta(gt=0.0, lt=1.0)] = 1e-15
    qber_limit: Annotated[float, Meta(gt=0.0, lt=0.25)] = 0.08
    batch_bits: Annotated[int, Meta(ge=2**16, le=2**28)] = 4_000_000
    batch_max_bits: Annotated[int, Meta(ge=2**16, le=2**28)] = 16_000_000
    batch_deadline_s: Positive = 900.0
    dead_time_ns: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 50
    profile: Literal["lan", "wan", "tight"] = "lan"
    click_share_limit: Probability = 0.005  # share of double and crossed clicks above which Bob alarms

    def __post_init__(self) -> None:
        if self.batch_max_bits < self.batch_bits:
            raise ValueError("`batch_max_bits` is below `batch_bits`")
        if (self.method == "lim2014/1") != (len(self.intensities) == 3):
            raise ValueError("`method` rusca2018/1 takes two `intensities`, lim2014/1 takes three")
        if len(self.intensities) != len(self.intensity_probabilities):
            raise ValueError("`intensities` and `intensity_probabilities` differ in length")


class AuthenticationSection(Section, frozen=True):
    """How much authentication key a link keeps, in bits for sending at this end."""

    reserve_bits: Annotated[int, Meta(ge=4_096, le=2**40)] = 65_536  # below it the link is STARVED: refill only
    target_bits: Annotated[int, Meta(ge=8_192, le=2**40)] = 270_336  # Batches refill up to this


class LimitsSection(Section, frozen=True):
    """What the counts of a link and the sensors of its module may show before an alarm. Each end has its own; the
    counts are judged at Bob. Of a sensor whose limits are left out, what it shows at first is taken for usual."""

    expected_qber: Probability | None = None  # None: what the link shows at first
    bit_bias: Annotated[float, Meta(gt=0.0, le=0.5)] = 0.05  # distance of the share of ones from a half
    basis_bias: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.05  # distance of the share of detections in X from 1 - p_z
    double_click_share: tuple[Probability, Probability] = (0.0, 0.005)  # of the detections
    photocurrent_na: tuple[float, float] | None = None  # of detectors; at a transmitter of the laser's monitor
    bias_voltage_mv: tuple[float, float] | None = None
    temperature_mc: tuple[float, float] | None = None
    least_secret_bps: Annotated[float, Meta(gt=0.0)] | None = None  # of key over five minutes; less is degraded

    def __post_init__(self) -> None:
        for name in ("double_click_share", "photocurrent_na", "bias_voltage_mv", "temperature_mc"):
            limits = getattr(self, name)
            if limits is not None and limits[0] >= limits[1]:
                raise ValueError(f"`{name}` needs a lower and a higher limit")


class LinkSection(Section, frozen=True):
    """One QKD link to a neighbour."""

    name: Name
    role: Literal["alice", "bob"]
    peer: Name
    peer_public: str  # PEER.public
    pair_key: str  # LINK.NODE.pair, made by `qkdnode provision pair`; read once
    module: ModuleSection
    listen: Endpoint | None = None
    connect: Endpoint | None = None
    distill: DistillSection = DistillSection()
    authentication: AuthenticationSection = AuthenticationSection()
    compare_hours: Annotated[float, Meta(gt=0.0, le=8760.0)] = 24.0  # how often both ends compare what they hold
    limits: LimitsSection = LimitsSection()

    def __post_init__(self) -> None:
        if (self.listen is None) == (self.connect is None):
            raise ValueError("a link needs either `listen` or `connect`")


class AssociationSection(Section, frozen=True):
    """A pair of applications that may have keys of a link."""

    local: Name
    remote: Name
    link: Name
    remote_services: Services = ()  # the `services` that the far end's configuration gives to `remote`


class AlarmsSection(Section, frozen=True):
    """From when on the node raises alarms about itself."""

    disk_free_bytes: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 536_870_912  # less is left for the vault
    clock_step_s: Annotated[float, Meta(gt=0.0)] = 0.5  # the wall clock was set by more
    reserve_days: Annotated[float, Meta(ge=0.0)] = 1.0  # authentication key runs out sooner


class EventsSection(Section, frozen=True):
    """Where events are published, and how far back they are replayed: whichever limit is reached first."""

    publish: Endpoint
    replay: Endpoint
    retention_events: Annotated[int, Meta(ge=1, le=2**53)] = 1_000_000  # newest entries of the audit log
    retention_hours: Annotated[float, Meta(gt=0.0, le=876_000.0)] = 168.0


class SubscriberSection(Section, frozen=True):
    """An application or node that may have events, and of which topics."""

    name: Name
    public: str  # NAME.public, made by `qkdnode provision`
    topics: Annotated[tuple[TopicPattern, ...], Meta(min_length=1, max_length=64)]


class WatchSection(Section, frozen=True):
    """Where the node shows its metrics and its health, over plain HTTP: to this machine only, unless told otherwise."""

    listen: Annotated[str, Meta(pattern=r"^(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):[0-9]{1,5}\Z")] = "127.0.0.1:9464"
    allow_remote: bool = False  # nothing there is secret, but anybody who reaches it can read it

    def __post_init__(self) -> None:
        host, port = self.address
        if port > 65535:
            raise ValueError(f"`watch.listen`: {port} is no port")
        if not self.allow_remote and not _is_loopback(host):
            raise ValueError(
                f"`watch.listen` names {host}, which others can reach: give a loopback address, or set `allow_remote`"
            )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class AlgorithmSection(Section, frozen=True):
    """What this node says of one algorithm of the registry: stricter than the registry, never looser."""

    status: Literal["deprecated", "disallowed"] | None = None  # from now on
    deprecated_from: datetime.date | None = None
    disallowed_from: datetime.date | None = None
    replacement: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


class AssetSection(Section, frozen=True):
    """Whose some assets are, and how they are classified. The first table that fits an asset counts."""

    kind: AssetKind | None = None  # None: any
    name: Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,96}\Z")] = "*"  # "*": any
    owner: Label | None = None
    classification: Label | None = None

    def __post_init__(self) -> None:
        if self.owner is None and self.classification is None:
            raise ValueError("`asset` needs `owner` or `classification`")


class Config(Section, frozen=True):
    """The whole file."""

    node: NodeSection
    supply: SupplySection | None = None
    watch: WatchSection | None = None
    application: tuple[ApplicationSection, ...] = ()
    qrng: tuple[QrngSection, ...] = ()
    link: tuple[LinkSection, ...] = ()
    association: tuple[AssociationSection, ...] = ()
    events: EventsSection | None = None
    subscriber: tuple[SubscriberSection, ...] = ()
    control: ControlSection | None = None
    operator: tuple[OperatorSection, ...] = ()
    alarms: AlarmsSection = AlarmsSection()
    algorithms: dict[str, AlgorithmSection] = {}
    asset: tuple[AssetSection, ...] = ()

    def __post_init__(self) -> None:
        for what, names in (
            ("link", [link.name for link in self.link]),
            ("application", [application.name for application in self.application]),
            ("operator", [operator.name for operator in self.operator]),
            ("qrng", [qrng.serial for qrng in self.qrng]),
            ("subscriber", [subscriber.name for subscriber in self.subscriber]),
            ("module of a link", [link.module.serial for link in self.link]),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{what} {name!r} is there twice")
        applications = {application.name for application in self.application}
        links = {link.name for link in self.link}
        for association in self.association:
            if association.local not in applications:
                raise ValueError(f"`association.local` names {association.local!r}, which is no `application`")
            if association.link not in links:
                raise ValueError(f"`association.link` names {association.link!r}, which is no `link`")
        if applications and self.supply is None:
            raise ValueError("`application` needs a `supply` section")
        if self.subscriber and self.events is None:
            raise ValueError("`subscriber` needs an `events` section")
        if self.operator and self.control is None:
            raise ValueError("`operator` needs a `control` section")
        if self.link and not self.qrng:
            raise ValueError("`link` needs at least one `qrng`")


def decode_config(text: str, where: str = "configuration") -> Config:
    """The configuration in a TOML text; ConfigError names what is wrong in it."""
    try:
        raw = tomllib.loads(text)
    except ValueError as error:  # of tomllib, or of an integer with too many digits
        raise ConfigError(f"{where}: not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where}: arrays or tables nested too deep") from None
    try:
        return msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None


def load_config(path: Path) -> Config:
    """Read and decode the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason}") from None
    return decode_config(text, str(path))
