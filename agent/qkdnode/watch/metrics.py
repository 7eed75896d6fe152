"""Prometheus metrics of a node: one table of families, each read from a snapshot of figures.

Units are base units (seconds, bytes, ratios) and bits; counters end in _total. No application and no key is named.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from qkdnode.device.entropy import SourceState
from qkdnode.device.module import ModuleStatistics
from qkdnode.device.qrng import QrngStatistics
from qkdnode.device.reader import ReaderState
from qkdnode.vault.requests import COMMIT_BOUNDS_S
from qkdnode.watch.figures import AlarmFigures, Figures

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
LINK_STATES = ("DOWN", "OPEN", "PAUSED", "STARVED", "QUARANTINED", "NO_ENTROPY", "FAILED")
# A reason may be the peer's own word: nobody may make a time series of each of many words.
REASON = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
MOST_REASONS = 48
OTHER = "other"
PAD_BITS = 128

Sample = tuple[tuple[str, ...], float]
Samples = Callable[[Figures], Iterable[Sample]]
COUNTER, GAUGE = CounterMetricFamily, GaugeMetricFamily


class Family(NamedTuple):
    """A metric: its kind, name (a counter's without _total), help, label names, and where its samples come from."""

    kind: type[CounterMetricFamily] | type[GaugeMetricFamily]
    name: str
    text: str
    labels: tuple[str, ...]
    samples: Samples


Rows = tuple[tuple[str, str, str], ...]  # the rest of the name, the attribute, the help
Reader = Callable[[str], Samples]


def families(kind: type[Any], prefix: str, labels: tuple[str, ...], reader: Reader, rows: Rows) -> Iterator[Family]:
    """Families that are read alike."""
    for name, attribute, text in rows:
        yield Family(kind, prefix + name, text, labels, reader(attribute))


def _each(subjects: Callable[[Figures], Iterable[Any]], name: str) -> Reader:
    """For each subject under its name the attribute, where it has one."""

    def reader(attribute: str) -> Samples:
        read = attrgetter(attribute)
        return lambda figures: [
            ((getattr(one, name),), value) for one in subjects(figures) if (value := read(one)) is not None
        ]

    return reader


def _one(subject: Callable[[Figures], Any]) -> Reader:
    """The attribute of what there may be one of."""

    def reader(attribute: str) -> Samples:
        read = attrgetter(attribute)
        return lambda figures: [] if (found := subject(figures)) is None else [((), read(found))]

    return reader


def scanned(attribute: str) -> Samples:
    """A count of each device's packet scanner; a module that was never opened has none."""
    return lambda figures: [
        ((one.serial,), getattr(one.scan, attribute)) for one in devices(figures) if one.scan is not None
    ]


def devices(figures: Figures) -> tuple[ModuleStatistics | QrngStatistics, ...]:
    """QKD modules and QRNGs."""
    return (*figures.modules, *figures.qrngs)


link = _each(lambda figures: figures.links, "link")
device = _each(devices, "serial")
module = _each(lambda figures: figures.modules, "serial")
qrng = _each(lambda figures: figures.qrngs, "serial")
node = _one(lambda figures: figures)
pool = _one(lambda figures: figures.pool)
vault = _one(lambda figures: figures.vault)
supply = _one(lambda figures: figures.supply)


def named_reasons(counts: dict[str, int]) -> dict[str, int]:
    """Counts by reason, the first so many reasons that are words; the rest together."""
    kept: dict[str, int] = {}
    for reason, count in counts.items():
        name = reason if REASON.fullmatch(reason) and len(kept) < MOST_REASONS else OTHER
        kept[name] = kept.get(name, 0) + count
    return kept


def link_states(figures: Figures) -> Iterator[Sample]:
    """Of each link, 1 for the state that it is in and 0 for the others."""
    for one in figures.links:
        for state in dict.fromkeys((*LINK_STATES, one.counts.state)):
            yield (one.link, state), state == one.counts.state


def link_discards(figures: Figures) -> Iterator[Sample]:
    """What of each link made no key, by reason."""
    for one in figures.links:
        for reason, count in named_reasons(one.counts.discards).items():
            yield (one.link, reason), count


def batches(figures: Figures) -> Iterator[Sample]:
    """Batches in the vault by what became of them."""
    if figures.vault is not None:
        for state, count in figures.vault.batches.items():
            yield (state,), count


def link_qber(figures: Figures) -> Iterator[Sample]:
    """The error rate of the newest Block, where there was one."""
    for one in figures.links:
        if one.counts.blocks:
            yield (one.link, "Z"), one.counts.qber_z


def windows_discarded(figures: Figures) -> Iterator[Sample]:
    """Windows of each module that were not whole, by reason."""
    for one in figures.modules:
        for reason, count in one.discarded.items():
            yield (one.serial, reason.name.lower()), count


def stock(figures: Figures) -> Iterator[Sample]:
    """Key to allocate from, of each link: this end's half and the peer's."""
    if figures.vault is not None:
        for half, bits in (("own", figures.vault.stock_bits_own), ("peer", figures.vault.stock_bits_peer)):
            for name, value in bits.items():
                yield (name, half), value


def qrng_states(figures: Figures) -> Iterator[Sample]:
    """Of each QRNG, 1 for the state that it is in and 0 for the others."""
    for one in figures.qrngs:
        for state in SourceState:
            yield (one.serial, state.value), state is one.source.state


def _alarms(measure: Callable[[AlarmFigures], float], fold: Callable[[float, float], float]) -> Samples:
    def samples(figures: Figures) -> Iterator[Sample]:
        found: dict[tuple[str, str], float] = {}
        for alarm in figures.alarms:
            labels, value = (alarm.code, alarm.severity), measure(alarm)
            found[labels] = fold(found[labels], value) if labels in found else value
        yield from found.items()

    return samples


def plus(a: float, b: float) -> float:
    """Alarms about several subjects count together."""
    return a + b


def authentication_left(figures: Figures) -> Iterator[Sample]:
    """Authentication key of each link that this end can still send with."""
    if figures.vault is not None:
        for name, pads in figures.vault.pads.items():
            yield (name,), pads * PAD_BITS


def keys(figures: Figures) -> Iterator[Sample]:
    """Keys in the vault by state."""
    if figures.vault is not None:
        for state, count in figures.vault.keys.items():
            yield (state,), count


def clock_deviation(figures: Figures) -> Iterator[Sample]:
    """How much faster than nominal the clock of each receiver runs, once it is known."""
    for one in figures.modules:
        if one.clock_rate_ppm is not None:
            yield (one.serial,), one.clock_rate_ppm * 1e-6


def streaming(figures: Figures) -> Iterator[Sample]:
    """Whether each device is open and streams."""
    for one in devices(figures):
        yield (one.serial,), one.state is ReaderState.STREAMING


ALARM = ("code", "severity")
LINK, LINK_REASON = ("link",), ("link", "reason")
SERIAL, SERIAL_REASON = ("serial",), ("serial", "reason")

LINK_COUNTERS: Rows = (
    ("sessions", "counts.sessions", "Sessions opened."),
    ("windows", "counts.windows", "Windows sifted."),
    ("sifted_bits", "counts.sifted_bits", "Sifted bits in the key basis Z."),
    ("sampled_bits", "counts.x_bits", "Sifted bits in X."),
    ("sampled_error_bits", "counts.x_errors", "Errors among them; counted at Bob."),
    ("verified_bits", "counts.verified_bits", "Reconciled and verified bits."),
    ("verified_error_bits", "counts.errors", "Errors that were corrected in them."),
    ("alice_parity_bits", "counts.alice_bits", "Parities that Alice disclosed of them."),
    ("bob_parity_bits", "counts.bob_bits", "Parities that Bob disclosed of them."),
    ("blocks", "counts.blocks", "Blocks verified."),
    ("opened_frames", "counts.opened_frames", "Frames that failed and were opened."),
    ("batches_ready", "counts.batches_ready", "Batches that made key."),
    ("secret_bits", "counts.secret_bits", "Secret bits made, the refill included."),
    ("authentication_spent_bits", "counts.auth_spent_bits", "Authentication key spent."),
    ("authentication_refilled_bits", "counts.auth_refilled_bits", "Authentication key refilled."),
    ("messages_discarded", "counts.messages_discarded", "Messages of the peer that broke a rule."),
)
CHANNEL_COUNTERS: Rows = (  # as ZeroMQ's monitor tells
    ("connections", "channel.connections", "Connections of the neighbour, the first included."),
    ("disconnections", "channel.disconnections", "Connections lost."),
    ("handshakes_failed", "channel.refused", "Handshakes of others, or refused by the neighbour."),
    ("frames_discarded", "channel.discarded", "Frames malformed or of a former connection."),
    ("received_bytes", "channel.bytes_in", "Frames received."),
    ("sent_bytes", "channel.bytes_out", "Frames sent."),
)
DEVICE_COUNTERS: Rows = (
    ("openings", "openings", "How often the device was opened."),
    ("stalls", "stalls", "Stalls of the stream."),
    ("read_bytes", "bytes_read", "Stream read."),
)
SCAN_COUNTERS: Rows = (
    ("packets", "packets", "Packets taken in sequence."),
    ("crc_errors", "crc_errors", "Damaged stretches of the stream."),
    ("sequence_gaps", "sequence_gaps", "Gaps in the sequence of packets."),
    ("reported_gaps", "reported_gaps", "Gaps that the device reported."),
)
QRNG_COUNTERS: Rows = (
    ("raw_bytes", "source.raw_bytes", "Raw bytes tested."),
    ("conditioned_bytes", "source.conditioned_bytes", "Bytes out of the extractor."),
    ("discarded_bytes", "source.discarded_bytes", "Bytes discarded after a failure or a loss."),
)
POOL_GAUGES: Rows = (
    ("healthy", "healthy", "Whether a QRNG is healthy."),
    ("available_bytes", "available_bytes", "Conditioned bytes in the pool."),
)
POOL_COUNTERS: Rows = (
    ("drawn_bytes", "drawn_bytes", "Bytes drawn from the pool."),
    ("refusals", "refusals", "Draws refused."),
)
VAULT_GAUGES: Rows = (
    ("application_outbox", "application_outbox", "Keys that wait for applications."),
    ("neighbour_outbox", "neighbour_outbox", "Messages that neighbours have not journalled."),
    ("scrub_running", "scrub_running", "Whether a pass over all stored records is made."),
    ("scrub_rows", "scrub_rows", "Records that the pass, or the last one, has looked at."),
    ("scrub_damaged", "scrub_damaged", "Damaged records that it has met."),
    ("erasures_waiting", "erasures_waiting", "Deleted data keys that the files were not searched for yet."),
)
VAULT_COUNTERS: Rows = (
    ("keys_delivered_both", "keys_delivered_both", "Keys delivered at both ends, over the vault's life."),
    ("leaves", "leaves", "Entries of the audit log, over the vault's life."),
    ("requests", "commits.requests", "Requests in groups that changed something."),
)
SUPPLY_COUNTERS: Rows = (
    ("connections", "counts.connections", "Connections of applications."),
    ("handshakes_failed", "counts.refused_connections", "Strangers refused."),
    ("sessions_refused", "counts.refused_sessions", "Sessions refused."),
    ("subscriptions_refused", "counts.refused_subscriptions", "Subscriptions refused."),
    ("keys_sent", "counts.keys_sent", "Keys sent, repeats included."),
    ("keys_sent_again", "counts.keys_sent_again", "Of these, repeats."),
    ("keys_delivered", "counts.keys_delivered", "Keys acknowledged."),
    ("keys_not_opened", "counts.keys_not_opened", "Keys that the vault refused to open."),
    ("records_failed", "counts.failed_records", "Acknowledgements that the vault did not journal."),
    ("messages_discarded", "counts.discarded", "Messages of applications that broke a rule."),
)

FAMILIES: tuple[Family, ...] = (
    Family(GAUGE, "qkdnode_build_info", "The software; always 1.", ("version",), lambda f: [((f.version,), 1)]),
    *families(GAUGE, "qkdnode_", (), node, (("event_loop_lag_seconds", "loop_lag_s", "Worst of the last minutes."),)),
    Family(GAUGE, "qkdnode_link_state", "1 for the state that the link is in.", ("link", "state"), link_states),
    Family(GAUGE, "qkdnode_link_qber_ratio", "Error rate of the newest Block.", ("link", "basis"), link_qber),
    Family(COUNTER, "qkdnode_link_discards", "Windows, Batches, messages without key.", LINK_REASON, link_discards),
    *families(COUNTER, "qkdnode_link_", LINK, link, LINK_COUNTERS),
    Family(GAUGE, "qkdnode_link_authentication_left_bits", "Pads left for sending.", LINK, authentication_left),
    *families(GAUGE, "qkdnode_channel_", LINK, link, (("connected", "connected", "Whether the neighbour is there."),)),
    *families(COUNTER, "qkdnode_channel_", LINK, link, CHANNEL_COUNTERS),
    Family(GAUGE, "qkdnode_device_streaming", "Whether the device is open and streams.", SERIAL, streaming),
    *families(COUNTER, "qkdnode_device_", SERIAL, device, DEVICE_COUNTERS),
    *families(COUNTER, "qkdnode_device_", SERIAL, scanned, SCAN_COUNTERS),
    *families(COUNTER, "qkdnode_device_", SERIAL, module, (("windows", "windows", "Whole Windows."),)),
    Family(COUNTER, "qkdnode_device_windows_discarded", "Windows not whole.", SERIAL_REASON, windows_discarded),
    *families(GAUGE, "qkdnode_device_", SERIAL, module, (("clock_locked", "clock_locked", "To the sync pulses."),)),
    *families(COUNTER, "qkdnode_device_", SERIAL, module, (("clock_losses", "clock_losses", "Of that lock."),)),
    Family(GAUGE, "qkdnode_device_clock_deviation_ratio", "Rate over nominal, minus 1.", SERIAL, clock_deviation),
    *families(GAUGE, "qkdnode_entropy_", (), pool, POOL_GAUGES),
    *families(COUNTER, "qkdnode_entropy_", (), pool, POOL_COUNTERS),
    Family(GAUGE, "qkdnode_qrng_state", "1 for the state that the QRNG is in.", ("serial", "state"), qrng_states),
    *families(COUNTER, "qkdnode_qrng_", SERIAL, qrng, QRNG_COUNTERS),
    Family(GAUGE, "qkdnode_vault_up", "Whether the vault answers.", (), lambda f: [((), f.vault is not None)]),
    Family(GAUGE, "qkdnode_vault_stock_bits", "Key to allocate from, by half.", ("link", "half"), stock),
    Family(GAUGE, "qkdnode_vault_batches", "Batches by state.", ("state",), batches),
    Family(GAUGE, "qkdnode_vault_keys", "Keys by state.", ("state",), keys),
    *families(GAUGE, "qkdnode_vault_", (), vault, VAULT_GAUGES),
    *families(COUNTER, "qkdnode_vault_", (), vault, VAULT_COUNTERS),
    *families(GAUGE, "qkdnode_supply_", (), supply, (("subscriptions", "subscriptions", "Applications subscribed."),)),
    *families(COUNTER, "qkdnode_supply_", (), supply, SUPPLY_COUNTERS),
    Family(GAUGE, "qkdnode_alarms_active", "Raised and not cleared.", ALARM, _alarms(attrgetter("active"), plus)),
    Family(COUNTER, "qkdnode_alarm_occurrences", "Occurrences of alarms.", ALARM, _alarms(attrgetter("count"), plus)),
    Family(
        GAUGE,
        "qkdnode_alarm_last_seen_timestamp_seconds",
        "When an alarm last occurred.",
        ALARM,
        _alarms(lambda alarm: alarm.last_ns / 1e9, max),
    ),
)


class FigureCollector:
    """Makes Prometheus families of one snapshot."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry lives for one reading."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every family, those without samples too."""
        for family in FAMILIES:
            metric: Any = family.kind(family.name, family.text, labels=family.labels)
            for labels, value in family.samples(self._figures):
                metric.add_metric(labels, value)
            yield metric
        yield self._commits()

    def _commits(self) -> Metric:
        metric = HistogramMetricFamily(
            "qkdnode_vault_commit_seconds", "How long the commits of groups took, sync included.", labels=()
        )
        if self._figures.vault is not None:
            commits = self._figures.vault.commits
            buckets = [(str(bound), float(n)) for bound, n in zip(COMMIT_BOUNDS_S, commits.within, strict=True)]
            metric.add_metric((), [*buckets, ("+Inf", float(commits.groups))], commits.seconds)
        return metric


def exposition(figures: Figures) -> bytes:
    """The text that Prometheus reads: the node's families, and those of its process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FigureCollector(figures))
    ProcessCollector(registry=registry)
    return generate_latest(registry)
