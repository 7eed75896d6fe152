#ifndef QKN_PACKETS_SCAN_H
#define QKN_PACKETS_SCAN_H
#include <stddef.h>
#include <stdint.h>

/* Packets of the device protocol QMP/1: 512 bytes, little-endian.
 * Header {magic u16, version u8, type u8, session u16, count u16, sequence u32, base u64}, 61 records, CRC-32. */
enum {
    QKN_PACKET_BYTES = 512,
    QKN_PACKET_HEADER = 20,
    QKN_PACKET_RECORDS = 61,
    QKN_PACKET_PAYLOAD = 488,
    QKN_PACKET_SLOTS = 976,
    QKN_PACKET_MAGIC = 0x4B51,
    QKN_PACKET_VERSION = 1,
};

enum qkn_packet_type {
    QKN_PACKET_TAGS = 1,
    QKN_PACKET_CHOICES = 2,
    QKN_PACKET_RAW = 3,
    QKN_PACKET_CONDITIONED = 4,
    QKN_PACKET_SYNC = 5,
    QKN_PACKET_GAP = 6,
};

/* Why a range is missing. */
enum qkn_gap_reason {
    QKN_GAP_LOST = 1,      /* packets missing or damaged in between */
    QKN_GAP_REPORTED = 2,  /* the device says so */
    QKN_GAP_REGRESSED = 3, /* slots, times or offsets went backwards */
    QKN_GAP_CONFLICT = 4,  /* one sequence number, two contents */
};

/* What a feed yields, in stream order. Adjoining data packets make one piece.
 *   tags:    start = index of the first tag in times and patterns, count tags
 *   choices: start = first slot, count slots, offset of the nibbles in the payload
 *   raw:     start = byte offset in the device's stream, count bytes, offset in the payload
 *   sync:    start = index of the pulse, end = its time
 *   gap:     [start, end) in slots, time units or bytes, reason; an empty range is a break with nothing missing */
struct qkn_piece {
    uint32_t type;
    uint32_t reason;
    uint32_t count;
    uint32_t offset;
    uint64_t start;
    uint64_t end;
};

enum { QKN_PIECES_PER_PACKET = 2, QKN_REMEMBERED = 256 };

struct qkn_scan_counters {
    uint64_t packets;        /* taken in sequence, whatever they carried */
    uint64_t crc_errors;     /* damaged stretches, each up to the next good packet */
    uint64_t skipped_bytes;  /* bytes of those stretches */
    uint64_t stale_session;
    uint64_t sequence_gaps;
    uint64_t duplicates;     /* same sequence and content as one already taken */
    uint64_t late;           /* behind the sequence, never taken */
    uint64_t conflicts;      /* behind the sequence, other content than what was taken */
    uint64_t regressions;
    uint64_t malformed;
    uint64_t unknown;
    uint64_t reported_gaps;
    uint64_t missed_tags;    /* as far as the device counted them */
};

struct qkn_scanner {
    uint32_t types; /* bit t set: type t carries this stream's data */
    uint16_t session;
    uint32_t sequence; /* expected next */
    int broken;        /* something was lost since the last data */
    int damaged;       /* inside a damaged stretch */
    int placed;        /* `position` is known */
    uint64_t position; /* next slot, latest time or next byte offset */
    size_t tail_bytes;
    uint8_t tail[QKN_PACKET_BYTES];
    struct {
        uint32_t sequence, crc;
        int taken;
    } remembered[QKN_REMEMBERED];
    struct qkn_scan_counters counters;
};

struct qkn_scan_areas {
    uint8_t *payload;
    uint8_t *patterns;
    uint64_t *times;
    struct qkn_piece *pieces;
    size_t payload_bytes, tags, piece_count; /* room; on return: used */
};

/* CRC-32 (IEEE) of the first 508 bytes of a packet, without tables: the time does not depend on the contents. */
uint32_t qkn_packet_crc(const uint8_t *packet);

/* Forget the stream and expect this session from sequence 0. Counters stay. */
void qkn_scanner_expect(struct qkn_scanner *scanner, uint16_t session);

/* Take `bytes` of stream. -1 and nothing done if the areas could overflow, else 0. */
int qkn_scanner_feed(struct qkn_scanner *scanner, const uint8_t *data, size_t bytes, struct qkn_scan_areas *areas);
#endif
