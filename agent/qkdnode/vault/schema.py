"""The tables of the vault's one SQLite file, and the pragmas that it is opened with.

Every protected table ends in `generation` (transitions so far), `leaf` (position of the audit leaf of the last one)
and `mac` (over the table's name and all other columns). Sealed and wrapped columns hold ciphertext; nothing else in
the file is secret. A `batch` is 12 bytes, session 8 and number 4, big-endian, so that it sorts.
"""

APPLICATION_ID = 0x514B4456  # "QKDV"
SCHEMA_VERSION = 5

BUSY_MS = 5000
PRAGMAS = (
    # Until the file is in WAL mode: a rollback journal whose deletion a power loss undoes would undo the switch.
    "PRAGMA synchronous = EXTRA",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # NORMAL hands keys out twice after a power loss
    "PRAGMA foreign_keys = ON",
    "PRAGMA secure_delete = ON",
    f"PRAGMA busy_timeout = {BUSY_MS}",
    "PRAGMA cache_size = -16384",
    "PRAGMA journal_size_limit = 16777216",
)

TABLES = """
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

-- A key-encryption key for each link, day and algorithm. Rows with ciphertext name theirs; its own wrapping under the
-- root key is bound to all that stands here.
CREATE TABLE keks (
    number INTEGER PRIMARY KEY,
    link TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    algorithm TEXT NOT NULL,
    wrapped BLOB NOT NULL,
    UNIQUE (link, epoch, algorithm)
);

-- Key-encryption keys that are deleted: `trace` finds what may be left of one, `witness` was wrapped under it.
CREATE TABLE ended_keks (
    number INTEGER PRIMARY KEY,
    link TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    algorithm TEXT NOT NULL,
    state TEXT NOT NULL,
    trace BLOB NOT NULL,
    witness BLOB NOT NULL,
    deleted_ns INTEGER NOT NULL,
    destroyed_ns INTEGER,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL
);

-- Orders to wrap data keys anew. The newest says which algorithm new key-encryption keys are of.
CREATE TABLE rewraps (
    number INTEGER PRIMARY KEY,
    algorithm TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    state TEXT NOT NULL,
    rows INTEGER NOT NULL,
    by TEXT NOT NULL,
    made_ns INTEGER NOT NULL,
    ended_ns INTEGER,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL
);

-- How far the pass over all records is that began with leaf `number`: one row, written now and then.
CREATE TABLE scrubs (
    number INTEGER PRIMARY KEY,
    stage TEXT NOT NULL,
    place BLOB NOT NULL,
    rows INTEGER NOT NULL,
    keys INTEGER NOT NULL,
    ciphertexts INTEGER NOT NULL,
    damaged INTEGER NOT NULL,
    begun_ns INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL
);

CREATE TABLE links (
    link TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    peer TEXT NOT NULL,
    session_counter INTEGER NOT NULL,
    start BLOB NOT NULL,
    pair BLOB NOT NULL,
    provisioned INTEGER NOT NULL,
    heard_start BLOB NOT NULL,
    heard INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL
);

CREATE TABLE segments (
    link TEXT NOT NULL,
    batch BLOB NOT NULL,
    state TEXT NOT NULL,
    pads INTEGER NOT NULL,
    sending INTEGER NOT NULL,
    seen INTEGER NOT NULL,
    granted INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    version INTEGER NOT NULL,
    kek INTEGER,
    sealed BLOB,
    wrapped BLOB,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (link, batch)
);
CREATE INDEX segments_of_kek ON segments (kek) WHERE kek IS NOT NULL;
CREATE INDEX segments_live ON segments (link, batch) WHERE state IN ('waiting', 'usable');

CREATE TABLE batches (
    link TEXT NOT NULL,
    batch BLOB NOT NULL,
    state TEXT NOT NULL,
    usable INTEGER NOT NULL,
    announced INTEGER NOT NULL,
    half_bits INTEGER NOT NULL,
    record BLOB NOT NULL,
    content BLOB NOT NULL,
    message BLOB NOT NULL,
    made_ns INTEGER NOT NULL,
    settled_ns INTEGER,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (link, batch)
);
CREATE INDEX batches_unsettled ON batches (link, batch) WHERE NOT usable AND state IN ('pending', 'ready');
CREATE INDEX batches_unannounced ON batches (link, batch) WHERE usable AND NOT announced;
CREATE INDEX batches_made ON batches (link, made_ns);

CREATE TABLE chunks (
    link TEXT NOT NULL,
    half TEXT NOT NULL,
    batch BLOB NOT NULL,
    number INTEGER NOT NULL,
    state TEXT NOT NULL,
    spans TEXT NOT NULL,
    bits INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    version INTEGER NOT NULL,
    kek INTEGER NOT NULL,
    sealed BLOB NOT NULL,
    wrapped BLOB NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (link, half, batch, number)
);
CREATE INDEX chunks_of_kek ON chunks (kek);

CREATE TABLE associations (
    number INTEGER PRIMARY KEY,
    local TEXT NOT NULL,
    remote TEXT NOT NULL,
    source TEXT NOT NULL,
    node_local TEXT NOT NULL,
    node_remote TEXT NOT NULL,
    link TEXT NOT NULL,
    purpose TEXT NOT NULL,
    class TEXT NOT NULL,
    binding BLOB NOT NULL,
    services_local TEXT NOT NULL,
    services_remote TEXT NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL,
    UNIQUE (local, remote, source)
);

CREATE TABLE bundles (
    number INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    states BLOB NOT NULL,
    far BLOB NOT NULL,
    key_ids BLOB NOT NULL,
    class TEXT NOT NULL,
    association INTEGER NOT NULL REFERENCES associations (number),
    application TEXT NOT NULL,
    link TEXT NOT NULL,
    binding BLOB NOT NULL,
    agent TEXT NOT NULL,
    policy INTEGER NOT NULL,
    key_generation INTEGER NOT NULL,
    size_bits INTEGER NOT NULL,
    batch BLOB NOT NULL,
    half TEXT NOT NULL,
    offset_bits INTEGER NOT NULL,
    own INTEGER NOT NULL,
    outstanding INTEGER NOT NULL,
    delivery INTEGER,
    allocated_ns INTEGER NOT NULL,
    ready_ns INTEGER,
    delivered_ns INTEGER,
    delivered_remote_ns INTEGER,
    ended_ns INTEGER,
    epoch INTEGER NOT NULL,
    version INTEGER NOT NULL,
    kek INTEGER,
    mark BLOB NOT NULL,
    waits_ns INTEGER,
    held_ns INTEGER,
    used_ns INTEGER,
    kept_ns INTEGER,
    over_ns INTEGER,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL
);
CREATE INDEX bundles_of_kek ON bundles (kek) WHERE kek IS NOT NULL;
CREATE INDEX bundles_of_application ON bundles (application, delivery) WHERE delivery IS NOT NULL;
CREATE INDEX bundles_of_association ON bundles (association, size_bits, delivery) WHERE delivery IS NOT NULL;
CREATE INDEX bundles_outstanding ON bundles (association, outstanding, state) WHERE outstanding AND state = 'held';
CREATE INDEX bundles_of_generation ON bundles (association, key_generation, number);

-- What couriers carry for an association: the file that was written last, the numbers of files, which only rise, and
-- what the next one answers. `spent`: where bits were cut that files were sealed with which the other end may not have.
CREATE TABLE couriers (
    association INTEGER PRIMARY KEY REFERENCES associations (number),
    link TEXT NOT NULL,
    sent INTEGER NOT NULL,
    file BLOB NOT NULL,
    spent BLOB NOT NULL,
    heard INTEGER NOT NULL,
    digest BLOB NOT NULL,
    answers BLOB NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL
);

-- Which generation of an association's keys is supplied, and the rotation to the next. None: the first, and no other.
CREATE TABLE generations (
    association INTEGER PRIMARY KEY REFERENCES associations (number),
    link TEXT NOT NULL,
    current INTEGER NOT NULL,
    newest INTEGER NOT NULL,
    number INTEGER NOT NULL,
    phase TEXT NOT NULL,
    peer TEXT NOT NULL,
    reason TEXT NOT NULL,
    by TEXT NOT NULL,
    since_ns INTEGER NOT NULL,
    begun_ns INTEGER NOT NULL,
    phase_ns INTEGER NOT NULL,
    result TEXT NOT NULL,
    ending INTEGER NOT NULL,
    reached INTEGER NOT NULL,
    ended INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL
);

CREATE INDEX bundles_of_half ON bundles (link, batch, half, offset_bits);
-- What timers end next, class by class (qkdnode.lifecycle.retirement).
CREATE INDEX bundles_waiting ON bundles (class, own, waits_ns) WHERE waits_ns IS NOT NULL AND state = 'held';
CREATE INDEX bundles_on_hold ON bundles (class, own, held_ns) WHERE held_ns IS NOT NULL AND state = 'held';
CREATE INDEX bundles_used ON bundles (class, own, used_ns) WHERE used_ns IS NOT NULL AND state = 'held';
CREATE INDEX bundles_kept ON bundles (class, own, kept_ns) WHERE kept_ns IS NOT NULL AND state = 'held';
CREATE INDEX bundles_over ON bundles (class, own, over_ns) WHERE over_ns IS NOT NULL AND state = 'held';

-- Classes that keys are of and that the policy in force does not know.
CREATE TABLE lost_classes (
    name TEXT PRIMARY KEY,
    since_ns INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL
);

-- Place is the Bundle's number times 128 and the place in it; what a row belongs to is authenticated with it.
CREATE TABLE keys (
    place INTEGER PRIMARY KEY,
    sealed BLOB NOT NULL,
    wrapped BLOB NOT NULL
);

-- Every id that was ever taken, by its first eight bytes. It only finds the Bundle, whose verified row decides.
CREATE TABLE key_heads (
    head INTEGER NOT NULL,
    bundle INTEGER NOT NULL,
    PRIMARY KEY (head, bundle)
) WITHOUT ROWID;

CREATE TABLE requests (
    link TEXT NOT NULL,
    request INTEGER NOT NULL,
    digest BLOB NOT NULL,
    outcome TEXT NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (link, request)
);

CREATE TABLE pauses (
    link TEXT PRIMARY KEY,
    paused INTEGER NOT NULL,
    by TEXT NOT NULL,
    since_ns INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL
);

CREATE TABLE outbox (
    link TEXT NOT NULL,
    number INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    body BLOB NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (link, number)
);

CREATE INDEX outbox_revocations ON outbox (link, number) WHERE kind IN (60, 61);

-- What applications are told of keys that they have: the keys at some places of a Bundle are out of use.
CREATE TABLE endings (
    number INTEGER PRIMARY KEY,
    link TEXT NOT NULL,
    application TEXT NOT NULL,
    association INTEGER NOT NULL,
    bundle INTEGER NOT NULL,
    places BLOB NOT NULL,
    stage TEXT NOT NULL,
    reason TEXT NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL
);
CREATE INDEX endings_of_association ON endings (association, number);
CREATE INDEX endings_of_bundle ON endings (bundle);

-- What a compromise reaches: no key of these Batches is released, whatever its row says.
CREATE TABLE scopes (
    number INTEGER PRIMARY KEY,
    link TEXT NOT NULL,
    first BLOB NOT NULL,
    last BLOB NOT NULL,
    application TEXT NOT NULL,
    reason TEXT NOT NULL,
    by TEXT NOT NULL,
    made_ns INTEGER NOT NULL,
    reached INTEGER NOT NULL,
    keys INTEGER NOT NULL,
    moving INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL
);

-- Ids that the neighbour has revoked and that were never a key's here: they become none.
CREATE TABLE tombstones (
    link TEXT NOT NULL,
    key_id BLOB NOT NULL,
    reason TEXT NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (link, key_id)
);

-- Between which Batches a device has served a link.
CREATE TABLE duties (
    link TEXT NOT NULL,
    serial TEXT NOT NULL,
    first BLOB NOT NULL,
    last BLOB NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (link, serial)
);

-- A numbered chain: `previous` is the digest of the record before, zeros in the first.
CREATE TABLE policies (
    number INTEGER PRIMARY KEY,
    previous BLOB NOT NULL,
    document BLOB NOT NULL,
    approvals BLOB NOT NULL,
    repeats INTEGER,
    applied_ns INTEGER NOT NULL,
    applied_by TEXT NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL
);

-- Devices and software as they were when the node saw them last; `gone`: it has them no more.
CREATE TABLE assets (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    marks TEXT NOT NULL,
    gone INTEGER NOT NULL,
    noted_ns INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (kind, name)
);

CREATE TABLE alarms (
    code TEXT NOT NULL,
    about TEXT NOT NULL,
    severity TEXT NOT NULL,
    detail TEXT NOT NULL,
    first_ns INTEGER NOT NULL,
    last_ns INTEGER NOT NULL,
    count INTEGER NOT NULL,
    state TEXT NOT NULL,
    acknowledged_by TEXT,
    acknowledged_ns INTEGER,
    cleared_ns INTEGER,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (code, about)
);

CREATE TABLE leaves (
    position INTEGER PRIMARY KEY,
    leaf TEXT NOT NULL,
    subject TEXT GENERATED ALWAYS AS (json_extract(leaf, '$.subject')) VIRTUAL
);
CREATE INDEX leaves_subject ON leaves (subject);

CREATE TABLE checkpoints (
    size INTEGER PRIMARY KEY,
    note TEXT NOT NULL
);

-- Hashes of complete subtrees of the log of 256 leaves and more: number n of a level is over leaves n * 2^level on.
CREATE TABLE subtrees (
    level INTEGER NOT NULL,
    number INTEGER NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (level, number)
) WITHOUT ROWID;

-- What neighbours have signed of this log: lines that stand under the checkpoint of that size.
CREATE TABLE cosignatures (
    size INTEGER NOT NULL REFERENCES checkpoints (size),
    witness TEXT NOT NULL,
    line TEXT NOT NULL,
    PRIMARY KEY (size, witness)
) WITHOUT ROWID;
CREATE INDEX cosignatures_of_witness ON cosignatures (witness, size);

-- The log of the neighbour of a link, as this node has signed it last: `note` is the neighbour's own word on it, and
-- `contradiction` the latest other one that does not go with it.
CREATE TABLE witnessed (
    link TEXT NOT NULL,
    pair BLOB NOT NULL,
    origin TEXT NOT NULL,
    size INTEGER NOT NULL,
    root BLOB NOT NULL,
    note TEXT NOT NULL,
    signed_ns INTEGER NOT NULL,
    contradiction TEXT NOT NULL,
    contradicted_ns INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (link, pair)
);

-- Hashes over what is held of a link, by which two ends compare: of stretches of stock and their Bundles (level 5), of
-- buckets of those (4) and of the nodes above. Empty: to be made anew. A node that is to be made anew is not there.
CREATE TABLE digests (
    link TEXT NOT NULL,
    level INTEGER NOT NULL,
    path BLOB NOT NULL,
    digest BLOB NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (link, level, path)
) WITHOUT ROWID;
CREATE INDEX digests_stale ON digests (link, path) WHERE level = 5 AND digest = x'';

-- Bundles and stretches of stock that do not agree with what the neighbour holds; a place below zero is of stock.
CREATE TABLE doubts (
    link TEXT NOT NULL,
    batch BLOB NOT NULL,
    half TEXT NOT NULL,
    place INTEGER NOT NULL,
    verdict TEXT NOT NULL,
    since_ns INTEGER NOT NULL,
    looks INTEGER NOT NULL,
    looked_ns INTEGER NOT NULL,
    keys INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    leaf INTEGER NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (link, batch, half, place)
);

CREATE TABLE counts (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
"""
