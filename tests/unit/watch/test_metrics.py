"""What Prometheus reads: every family from one snapshot, named by the rules, without anybody's name."""

import re

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from qkdnode.channel.neighbour import ChannelStatistics
from qkdnode.device.assembly import ScanCounters
from qkdnode.device.entropy import PoolStatistics, SourceState, SourceStatistics
from qkdnode.device.module import ModuleStatistics
from qkdnode.device.qrng import QrngStatistics
from qkdnode.device.reader import ReaderState
from qkdnode.device.windows import Discard
from qkdnode.link.statistics import LinkStatistics
from qkdnode.supply.server import SupplyStatistics
from qkdnode.vault.requests import COMMIT_BOUNDS_S, Commits, VaultStatus
from qkdnode.watch.alarms import SEVERITY, AlarmCode
from qkdnode.watch.figures import AlarmFigures, Figures, LinkFigures, SupplyFigures
from qkdnode.watch.metrics import FAMILIES, MOST_REASONS, exposition, named_reasons

LABELS = {"version", "link", "serial", "state", "reason", "basis", "half", "code", "severity", "le"}
# https://prometheus.io/docs/practices/naming: one base unit, spelled out, last in the name but for _total.
NOT_BASE = re.compile(
    r"_(ms|us|ns|milliseconds|minutes|hours|days|kib|mib|kilobytes|megabytes|percent|mbps|ppm|s|byte|bit)$"
)
UNITS = ("bits", "bytes", "seconds", "ratio")


def scanned(first: int) -> ScanCounters:
    return ScanCounters(**{name: first + n for n, name in enumerate(ScanCounters.__struct_fields__)})


def figures() -> Figures:
    """A node in which every figure is another number."""
    counts = LinkStatistics(state="OPEN", discards={"dark": 7, "QBER_HIGH": 2, "a peer's own words": 1})
    for n, name in enumerate(counts.__struct_fields__):
        if isinstance(getattr(counts, name), int):
            setattr(counts, name, 100 + n)
    counts.qber_z = 0.015
    source = SourceStatistics(
        serial="QRNG-1",
        state=SourceState.HEALTHY,
        reason="",
        raw_bytes=11,
        conditioned_bytes=12,
        discarded_bytes=13,
        overflow_bytes=14,
        available_bytes=15,
    )
    common = {"state": ReaderState.STREAMING, "openings": 1, "bytes_read": 4096, "stalls": 2}
    return Figures(
        version="1.2.3",
        links=(
            LinkFigures("line", True, counts, ChannelStatistics(connections=3, disconnections=2, refused=1)),
            LinkFigures("other", False, LinkStatistics(discards={}), ChannelStatistics()),
        ),
        modules=(
            ModuleStatistics(
                serial="QKD-1",
                scan=scanned(20),
                windows=30,
                discarded={Discard.LOST: 4, Discard.BACKLOG: 5},
                recalled_too_late=0,
                misplaced=0,
                clock_locked=True,
                clock_losses=6,
                clock_rate_ppm=12.5,
                **common,
            ),
            ModuleStatistics(
                serial="QKD-2",
                scan=None,
                windows=0,
                discarded={},
                recalled_too_late=0,
                misplaced=0,
                clock_locked=False,
                clock_losses=0,
                clock_rate_ppm=None,
                state=ReaderState.CLOSED,
                openings=0,
                bytes_read=0,
                stalls=0,
            ),
        ),
        qrngs=(QrngStatistics(serial="QRNG-1", scan=scanned(60), source=source, **common),),
        pool=PoolStatistics(healthy=True, available_bytes=5000, drawn_bytes=6000, refusals=1, sources=(source,)),
        vault=VaultStatus(
            keys={"ready": 8},
            keys_delivered_both=9,
            stock_bits_own={"line": 1000},
            stock_bits_peer={"line": 2000},
            batches={"ready": 10},
            pads={"line": 40},
            application_outbox=8,
            neighbour_outbox=1,
            leaves=77,
            commits=Commits().and_one(3, 0.0015).and_one(1, 0.3),
        ),
        supply=SupplyFigures(2, SupplyStatistics(connections=4, keys_delivered=9)),
        alarms=(
            AlarmFigures("DEVICE_GAP", "minor", True, 4, 1_700_000_000_500_000_000),
            AlarmFigures("DEVICE_GAP", "minor", False, 2, 1_700_000_009_000_000_000),
            AlarmFigures("QBER_HIGH", "critical", True, 1, 1_700_000_001_000_000_000),
        ),
        loop_lag_s=0.004,
    )


def parsed(of: Figures) -> dict[str, Metric]:
    """The families of a node by name, those of its process left out."""
    found = list(text_string_to_metric_families(exposition(of).decode()))
    assert len({family.name for family in found}) == len(found)
    assert {family.name for family in found if family.name.startswith("process_")} >= {
        "process_resident_memory_bytes",
        "process_cpu_seconds",
    }
    return {family.name: family for family in found if not family.name.startswith("process_")}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    """The one sample of these labels."""
    (found,) = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return found


def test_every_family_is_named_by_the_rules_and_has_help_and_samples() -> None:
    families = parsed(figures())
    assert {family.name for family in FAMILIES} | {"qkdnode_vault_commit_seconds"} == set(families)
    for family in families.values():
        assert re.fullmatch(r"qkdnode(_[a-z0-9]+)+", family.name)
        assert not NOT_BASE.search(family.name)
        assert family.documentation
        assert family.samples, family.name
        for unit in UNITS:  # a unit stands last
            assert unit not in family.name.split("_")[:-1], family.name
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
            assert set(sample.labels) <= LABELS


def test_a_name_against_the_rules_is_found() -> None:
    """Negative control."""
    assert all(NOT_BASE.search(name) for name in ("qkdnode_lag_ms", "qkdnode_pool_kib", "qkdnode_clock_ppm"))


def test_values_are_those_of_the_snapshot_in_base_units() -> None:
    families = parsed(figures())
    of = figures().links[0].counts
    for name, labels, wanted in (
        ("qkdnode_build_info", {"version": "1.2.3"}, 1),
        ("qkdnode_link_state", {"link": "line", "state": "OPEN"}, 1),
        ("qkdnode_link_state", {"link": "line", "state": "DOWN"}, 0),
        ("qkdnode_link_state", {"link": "other", "state": "DOWN"}, 1),
        ("qkdnode_link_sifted_bits_total", {"link": "line"}, of.sifted_bits),
        ("qkdnode_link_verified_error_bits_total", {"link": "line"}, of.errors),
        ("qkdnode_link_alice_parity_bits_total", {"link": "line"}, of.alice_bits),
        ("qkdnode_link_secret_bits_total", {"link": "line"}, of.secret_bits),
        ("qkdnode_link_qber_ratio", {"link": "line", "basis": "Z"}, 0.015),
        ("qkdnode_link_discards_total", {"link": "line", "reason": "dark"}, 7),
        ("qkdnode_link_authentication_left_bits", {"link": "line"}, 40 * 128),
        ("qkdnode_channel_disconnections_total", {"link": "line"}, 2),
        ("qkdnode_channel_connected", {"link": "other"}, 0),
        ("qkdnode_device_streaming", {"serial": "QKD-2"}, 0),
        ("qkdnode_device_streaming", {"serial": "QRNG-1"}, 1),
        ("qkdnode_device_crc_errors_total", {"serial": "QKD-1"}, 21),
        ("qkdnode_device_windows_discarded_total", {"serial": "QKD-1", "reason": "lost"}, 4),
        ("qkdnode_device_clock_deviation_ratio", {"serial": "QKD-1"}, pytest.approx(12.5e-6)),
        ("qkdnode_qrng_state", {"serial": "QRNG-1", "state": "healthy"}, 1),
        ("qkdnode_entropy_drawn_bytes_total", {}, 6000),
        ("qkdnode_vault_stock_bits", {"link": "line", "half": "peer"}, 2000),
        ("qkdnode_vault_leaves_total", {}, 77),
        ("qkdnode_vault_commit_seconds_count", {}, 2),
        ("qkdnode_vault_commit_seconds_sum", {}, pytest.approx(0.3015)),
        ("qkdnode_vault_commit_seconds_bucket", {"le": "0.001"}, 0),
        ("qkdnode_vault_commit_seconds_bucket", {"le": "0.002"}, 1),
        ("qkdnode_vault_commit_seconds_bucket", {"le": "+Inf"}, 2),
        ("qkdnode_supply_keys_delivered_total", {}, 9),
        ("qkdnode_alarms_active", {"code": "DEVICE_GAP", "severity": "minor"}, 1),
        ("qkdnode_alarm_occurrences_total", {"code": "DEVICE_GAP", "severity": "minor"}, 6),
        ("qkdnode_alarm_last_seen_timestamp_seconds", {"code": "DEVICE_GAP", "severity": "minor"}, 1_700_000_009),
        ("qkdnode_event_loop_lag_seconds", {}, 0.004),
    ):
        assert value(families, name, **labels) == wanted, (name, labels)


def test_what_was_never_measured_has_no_sample() -> None:
    families = parsed(figures())
    assert not [s for s in families["qkdnode_link_qber_ratio"].samples if s.labels["link"] == "other"]
    assert not [s for s in families["qkdnode_device_packets"].samples if s.labels["serial"] == "QKD-2"]


def test_a_node_whose_vault_does_not_answer_shows_the_rest() -> None:
    bare = figures()
    families = parsed(
        Figures(
            version=bare.version,
            links=bare.links,
            modules=(),
            qrngs=(),
            pool=None,
            vault=None,
            supply=None,
            alarms=(),
            loop_lag_s=0.0,
        )
    )
    assert value(families, "qkdnode_vault_up") == 0
    assert value(families, "qkdnode_link_sifted_bits_total", link="line") > 0
    assert not families["qkdnode_vault_keys"].samples


def test_nobody_can_make_many_time_series_of_reasons() -> None:
    flood = {f"reason-{n}": 1 for n in range(1000)} | {"two words": 3, "x" * 40: 4, 'quote"\n': 5}
    kept = named_reasons(flood)
    assert len(kept) == MOST_REASONS + 1
    assert sum(kept.values()) == 1000 + 12
    assert kept["other"] == 1000 - MOST_REASONS + 12
    assert named_reasons({"dark": 2, "two words": 1}) == {"dark": 2, "other": 1}


def test_commits_are_counted_in_every_bound_that_they_keep() -> None:
    commits = Commits()
    for seconds in (0.0001, 0.0005, 0.03, 9.0):
        commits = commits.and_one(2, seconds)
    assert (commits.groups, commits.requests) == (4, 8)
    assert dict(zip(COMMIT_BOUNDS_S, commits.within, strict=True)) == {
        0.0005: 2, 0.001: 2, 0.002: 2, 0.005: 2, 0.01: 2, 0.02: 2, 0.05: 3, 0.1: 3, 0.5: 3, 2.5: 3,
    }  # fmt: skip


def test_every_alarm_has_its_severity() -> None:
    assert set(SEVERITY) == set(AlarmCode)
    assert set(SEVERITY.values()) == {"critical", "major", "minor", "warning"}
