/* The packet parser: framing, resynchronisation, sequence, and unpacking. */
#include "packets_scan.h"

#include <string.h>

static uint16_t load16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

static uint32_t load32(const uint8_t *at)
{
    return (uint32_t)load16(at) | (uint32_t)load16(at + 2) << 16;
}

static uint64_t load64(const uint8_t *at)
{
    return (uint64_t)load32(at) | (uint64_t)load32(at + 4) << 32;
}

enum { LANES = 16, LANE_WORDS = 8 };
#define CRC_POLYNOMIAL 0xEDB88320u

/* A vector of gcc and clang; the compiler cuts it to what the CPU has. */
typedef uint32_t lanes __attribute__((vector_size(4 * LANES)));

/* x^(256 (15 - i)) mod P, reflected: what moves lane i over the bytes of the lanes behind it. */
static const lanes LANE_SHIFT = {
    0x8AB14358u, 0xB34988BBu, 0x8D8F12AFu, 0xB72D2B3Cu,
    0x894EAF8Cu, 0x7C69160Du, 0x08229C67u, 0xEC447F11u,
    0x6B1D2B53u, 0x62B6CA4Bu, 0x0EAEE722u, 0xD7BBFE6Au,
    0xE5B592B8u, 0x88D14467u, 0xED627DAEu, 0x80000000u,
};

/* 1,400 MB/s with 512-bit vectors, 450 with SSE2; gcc spills the 256-bit form to 140. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_ISA __attribute__((target_clones("avx512f", "default")))
#else
#define FOR_EACH_ISA
#endif

FOR_EACH_ISA uint32_t qkn_packet_crc(const uint8_t *packet)
{
    /* Word 0 is a leading zero, which adds nothing, so that 127 words fill 16 lanes of 8. */
    uint32_t words[LANE_WORDS][LANES];
    for (int lane = 0; lane < LANES; lane++)
        for (int word = 0; word < LANE_WORDS; word++) {
            int at = lane * LANE_WORDS + word - 1;
            words[word][lane] = at < 0 ? 0 : load32(packet + 4 * at);
        }
    words[1][0] ^= 0xFFFFFFFFu;
    lanes state = {0}, moved = {0};
    for (int word = 0; word < LANE_WORDS; word++) {
        lanes input;
        memcpy(&input, words[word], sizeof input);
        state ^= input;
        for (int bit = 0; bit < 32; bit++)
            state = (state >> 1) ^ (-(state & 1) & CRC_POLYNOMIAL);
    }
    for (int bit = 31; bit >= 0; bit--) {
        moved ^= state & -(LANE_SHIFT >> bit & 1);
        state = (state >> 1) ^ (-(state & 1) & CRC_POLYNOMIAL);
    }
    uint32_t crc = 0xFFFFFFFFu;
    for (int lane = 0; lane < LANES; lane++)
        crc ^= moved[lane];
    return crc;
}

void qkn_scanner_expect(struct qkn_scanner *scanner, uint16_t session)
{
    scanner->session = session;
    scanner->sequence = 0;
    scanner->broken = scanner->damaged = scanner->placed = 0;
    scanner->position = 0;
    scanner->tail_bytes = 0;
    memset(scanner->tail, 0, sizeof scanner->tail);
    memset(scanner->remembered, 0, sizeof scanner->remembered);
}

/* What one feed writes into. */
struct output {
    struct qkn_scan_areas *areas;
    size_t payload, tags, pieces;
};

static struct qkn_piece *new_piece(struct output *out, uint32_t type)
{
    struct qkn_piece *piece = &out->areas->pieces[out->pieces++];
    memset(piece, 0, sizeof *piece);
    piece->type = type;
    return piece;
}

static struct qkn_piece *last_piece(struct output *out, uint32_t type)
{
    if (out->pieces == 0 || out->areas->pieces[out->pieces - 1].type != type)
        return NULL;
    return &out->areas->pieces[out->pieces - 1];
}

static void put_gap(struct output *out, uint64_t start, uint64_t end, uint32_t reason)
{
    struct qkn_piece *piece = new_piece(out, QKN_PACKET_GAP);
    piece->start = start;
    piece->end = end;
    piece->reason = reason;
}

static void put_bytes(struct output *out, uint32_t type, uint64_t start, uint32_t count, const uint8_t *from)
{
    struct qkn_piece *piece = last_piece(out, type);
    if (!piece) {
        piece = new_piece(out, type);
        piece->start = start;
        piece->offset = (uint32_t)out->payload;
    }
    piece->count += count;
    memcpy(out->areas->payload + out->payload, from, QKN_PACKET_PAYLOAD);
    out->payload += QKN_PACKET_PAYLOAD;
}

/* Slots or bytes that must adjoin. 0 taken, -1 dropped as regressed. */
static int take_run(struct qkn_scanner *scanner, struct output *out, uint32_t type, uint64_t base, uint32_t count,
                    const uint8_t *payload)
{
    if (scanner->placed && base < scanner->position) {
        put_gap(out, base, scanner->position, QKN_GAP_REGRESSED);
        scanner->counters.regressions++;
        return -1;
    }
    if (scanner->placed && (scanner->broken || base != scanner->position))
        put_gap(out, scanner->position, base, QKN_GAP_LOST);
    put_bytes(out, type, base, count, payload);
    scanner->position = base + count;
    scanner->placed = 1;
    scanner->broken = 0;
    return 0;
}

/* Progress of the device's clock to `time`. 0, or -1 if it went backwards. */
static int reach_time(struct qkn_scanner *scanner, struct output *out, uint64_t time)
{
    if (scanner->placed && time < scanner->position) {
        put_gap(out, time, scanner->position, QKN_GAP_REGRESSED);
        scanner->counters.regressions++;
        return -1;
    }
    if (scanner->placed && scanner->broken)
        put_gap(out, scanner->position, time, QKN_GAP_LOST);
    scanner->placed = 1;
    scanner->broken = 0;
    return 0;
}

#define TIME_BITS 54
#define TIME_MASK ((1ULL << TIME_BITS) - 1)

/* Unwraps into times and patterns behind those in use. 0 if every tag is allowed, else -1. */
static int unpack_tags(const uint8_t *records, uint32_t count, uint64_t base, uint64_t *times, uint8_t *patterns)
{
    uint64_t high = base & ~TIME_MASK, previous = base & TIME_MASK;
    unsigned empty = 0;
    if (load64(records) >> 10 != previous)
        return -1;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t record = load64(records + 8 * i), low = record >> 10;
        unsigned wrapped = low < previous;
        if (i > 0 && wrapped != (record >> 4 & 1))
            return -1;
        if (wrapped)
            high += TIME_MASK + 1;
        previous = low;
        times[i] = high | low;
        patterns[i] = (uint8_t)(record & 15);
        /* Collected, not branched on: which detectors clicked is secret. */
        empty |= ((unsigned)(record & 15) - 1u) >> 31;
    }
    return empty ? -1 : 0;
}

static int take_tags(struct qkn_scanner *scanner, struct output *out, const uint8_t *records, uint32_t count,
                     uint64_t base)
{
    uint64_t *times = out->areas->times + out->tags;
    if (count == 0 || count > QKN_PACKET_RECORDS ||
        unpack_tags(records, count, base, times, out->areas->patterns + out->tags) != 0)
        return -1;
    if (reach_time(scanner, out, base) != 0)
        return 0;
    struct qkn_piece *piece = last_piece(out, QKN_PACKET_TAGS);
    if (!piece) {
        piece = new_piece(out, QKN_PACKET_TAGS);
        piece->start = out->tags;
    }
    piece->count += count;
    out->tags += count;
    scanner->position = times[count - 1];
    return 0;
}

static int take_sync(struct qkn_scanner *scanner, struct output *out, const uint8_t *records, uint64_t index)
{
    uint64_t time = load64(records);
    if (scanner->types & 1u << QKN_PACKET_TAGS) {
        if (reach_time(scanner, out, time) != 0)
            return 0;
        scanner->position = time;
    }
    struct qkn_piece *piece = new_piece(out, QKN_PACKET_SYNC);
    piece->start = index;
    piece->end = time;
    return 0;
}

static int take_reported(struct qkn_scanner *scanner, struct output *out, const uint8_t *records, uint64_t base)
{
    uint64_t start = base, end = base + load64(records);
    if (end < base)
        return -1;
    if (scanner->placed && (scanner->broken || start > scanner->position))
        start = start < scanner->position ? start : scanner->position;
    put_gap(out, start, end, QKN_GAP_REPORTED);
    if (!scanner->placed || end > scanner->position)
        scanner->position = end;
    scanner->placed = 1;
    scanner->broken = 0;
    scanner->counters.reported_gaps++;
    scanner->counters.missed_tags += load64(records + 8);
    return 0;
}

/* A packet with a good CRC, the expected session and the expected or a later sequence. 0, or -1 if malformed. */
static int take(struct qkn_scanner *scanner, struct output *out, const uint8_t *packet)
{
    uint32_t type = packet[3], count = load16(packet + 6);
    uint64_t base = load64(packet + 12);
    const uint8_t *records = packet + QKN_PACKET_HEADER;
    if (packet[2] != QKN_PACKET_VERSION)
        return -1;
    if (type >= 32 || !(scanner->types >> type & 1)) {
        /* What it carried may have been this stream's data under a wrong name. */
        scanner->counters.unknown++;
        scanner->broken = 1;
        return 0;
    }
    switch (type) {
    case QKN_PACKET_TAGS:
        return take_tags(scanner, out, records, count, base);
    case QKN_PACKET_CHOICES:
        if (count != QKN_PACKET_RECORDS || base & 1 || base > UINT64_MAX - QKN_PACKET_SLOTS)
            return -1;
        take_run(scanner, out, type, base, QKN_PACKET_SLOTS, records);
        return 0;
    case QKN_PACKET_RAW:
    case QKN_PACKET_CONDITIONED:
        if (count != QKN_PACKET_RECORDS || base > UINT64_MAX - QKN_PACKET_PAYLOAD)
            return -1;
        take_run(scanner, out, type, base, QKN_PACKET_PAYLOAD, records);
        return 0;
    case QKN_PACKET_SYNC:
        return count == 1 ? take_sync(scanner, out, records, base) : -1;
    case QKN_PACKET_GAP:
        return count == 2 ? take_reported(scanner, out, records, base) : -1;
    default:
        return -1;
    }
}

/* The slots, times or bytes a packet lays claim to. */
static uint64_t claimed_end(const uint8_t *packet, uint64_t base)
{
    switch (packet[3]) {
    case QKN_PACKET_CHOICES:
        return base + QKN_PACKET_SLOTS;
    case QKN_PACKET_RAW:
    case QKN_PACKET_CONDITIONED:
        return base + QKN_PACKET_PAYLOAD;
    default:
        return base + 1;
    }
}

/* A packet behind the sequence: a repeat, a latecomer, or another content under a number already taken. */
static void refuse(struct qkn_scanner *scanner, struct output *out, const uint8_t *packet, uint32_t sequence)
{
    uint32_t crc = load32(packet + QKN_PACKET_BYTES - 4);
    unsigned at = sequence % QKN_REMEMBERED;
    if (!scanner->remembered[at].taken || scanner->remembered[at].sequence != sequence) {
        scanner->counters.late++;
        return;
    }
    if (scanner->remembered[at].crc == crc) {
        scanner->counters.duplicates++;
        return;
    }
    scanner->counters.conflicts++;
    uint64_t base = load64(packet + 12);
    int is_data = packet[3] != QKN_PACKET_SYNC && packet[3] != QKN_PACKET_GAP && packet[3] < 32 &&
                  (scanner->types >> packet[3] & 1);
    uint64_t start = is_data && base < scanner->position ? base : scanner->position;
    uint64_t end = is_data ? claimed_end(packet, base) : start;
    if (scanner->placed)
        put_gap(out, start, end > scanner->position ? end : scanner->position, QKN_GAP_CONFLICT);
}

static void meet(struct qkn_scanner *scanner, struct output *out, const uint8_t *packet)
{
    if (load16(packet + 4) != scanner->session) {
        scanner->counters.stale_session++;
        return;
    }
    uint32_t sequence = load32(packet + 8);
    int32_t ahead = (int32_t)(sequence - scanner->sequence);
    if (ahead < 0) {
        refuse(scanner, out, packet, sequence);
        return;
    }
    if (ahead > 0) {
        scanner->counters.sequence_gaps++;
        scanner->broken = 1;
    }
    unsigned at = sequence % QKN_REMEMBERED;
    scanner->remembered[at].sequence = sequence;
    scanner->remembered[at].crc = load32(packet + QKN_PACKET_BYTES - 4);
    scanner->remembered[at].taken = 1;
    scanner->sequence = sequence + 1;
    scanner->counters.packets++;
    if (take(scanner, out, packet) != 0) {
        scanner->counters.malformed++;
        scanner->broken = 1;
    }
}

/* 1 if a whole good packet stands here; else 0 and the damage is noted. */
static int stands_here(struct qkn_scanner *scanner, const uint8_t *at)
{
    if (load16(at) == QKN_PACKET_MAGIC && qkn_packet_crc(at) == load32(at + QKN_PACKET_BYTES - 4)) {
        scanner->damaged = 0;
        return 1;
    }
    if (!scanner->damaged) {
        scanner->damaged = scanner->broken = 1;
        scanner->counters.crc_errors++;
    }
    return 0;
}

/* Bytes to skip to the next place behind the first byte where a packet could begin. */
static size_t to_next_candidate(const uint8_t *at, size_t bytes)
{
    size_t skip = 1;
    while (skip + 1 < bytes && load16(at + skip) != QKN_PACKET_MAGIC)
        skip++;
    return skip;
}

int qkn_scanner_feed(struct qkn_scanner *scanner, const uint8_t *data, size_t bytes, struct qkn_scan_areas *areas)
{
    size_t packets = (scanner->tail_bytes + bytes) / QKN_PACKET_BYTES;
    uint32_t runs = 1u << QKN_PACKET_CHOICES | 1u << QKN_PACKET_RAW | 1u << QKN_PACKET_CONDITIONED;
    if (areas->piece_count < packets * QKN_PIECES_PER_PACKET)
        return -1;
    if (scanner->types & runs && areas->payload_bytes < packets * QKN_PACKET_PAYLOAD)
        return -1;
    if (scanner->types & 1u << QKN_PACKET_TAGS && areas->tags < packets * QKN_PACKET_RECORDS)
        return -1;
    struct output out = {areas, 0, 0, 0};
    while (bytes > 0) {
        if (scanner->tail_bytes == 0 && bytes >= QKN_PACKET_BYTES) {
            size_t step = QKN_PACKET_BYTES;
            if (stands_here(scanner, data))
                meet(scanner, &out, data);
            else
                scanner->counters.skipped_bytes += step = to_next_candidate(data, bytes);
            data += step;
            bytes -= step;
            continue;
        }
        size_t part = QKN_PACKET_BYTES - scanner->tail_bytes;
        part = part < bytes ? part : bytes;
        memcpy(scanner->tail + scanner->tail_bytes, data, part);
        scanner->tail_bytes += part;
        data += part;
        bytes -= part;
        if (scanner->tail_bytes < QKN_PACKET_BYTES)
            break;
        size_t step = QKN_PACKET_BYTES;
        if (stands_here(scanner, scanner->tail))
            meet(scanner, &out, scanner->tail);
        else
            scanner->counters.skipped_bytes += step = to_next_candidate(scanner->tail, QKN_PACKET_BYTES);
        memmove(scanner->tail, scanner->tail + step, QKN_PACKET_BYTES - step);
        scanner->tail_bytes -= step;
    }
    areas->payload_bytes = out.payload;
    areas->tags = out.tags;
    areas->piece_count = out.pieces;
    return 0;
}
