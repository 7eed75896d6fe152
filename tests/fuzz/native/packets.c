/* The packet parser, in reads that the first byte sizes, into areas that are as small as it permits. */
#include "packets_scan.h"

#include <stdlib.h>
#include <string.h>

#include "driver.h"

static const uint32_t KINDS[3] = {
    1u << QKN_PACKET_CHOICES | 1u << QKN_PACKET_SYNC | 1u << QKN_PACKET_GAP,
    1u << QKN_PACKET_TAGS | 1u << QKN_PACKET_SYNC | 1u << QKN_PACKET_GAP,
    1u << QKN_PACKET_RAW | 1u << QKN_PACKET_CONDITIONED | 1u << QKN_PACKET_GAP,
};

static void feed(struct qkn_scanner *scanner, const uint8_t *data, size_t size)
{
    size_t packets = (scanner->tail_bytes + size) / QKN_PACKET_BYTES;
    struct qkn_scan_areas areas = {
        .payload_bytes = packets * QKN_PACKET_PAYLOAD,
        .tags = packets * QKN_PACKET_RECORDS,
        .piece_count = packets * QKN_PIECES_PER_PACKET,
    };
    uint8_t *copy = malloc(size ? size : 1);
    areas.payload = malloc(areas.payload_bytes + 1);
    areas.patterns = malloc(areas.tags + 1);
    areas.times = malloc(8 * areas.tags + 8);
    areas.pieces = malloc(sizeof *areas.pieces * areas.piece_count + 8);
    if (!copy || !areas.payload || !areas.patterns || !areas.times || !areas.pieces)
        abort();
    memcpy(copy, data, size);
    size_t payload = areas.payload_bytes, tags = areas.tags, pieces = areas.piece_count;
    if (qkn_scanner_feed(scanner, copy, size, &areas) != 0 || areas.payload_bytes > payload || areas.tags > tags ||
        areas.piece_count > pieces || scanner->tail_bytes >= QKN_PACKET_BYTES)
        abort();
    for (size_t i = 0; i < areas.piece_count; i++)
        if (areas.pieces[i].type == QKN_PACKET_TAGS && areas.pieces[i].start + areas.pieces[i].count > tags)
            abort();
    free(copy);
    free(areas.payload);
    free(areas.patterns);
    free(areas.times);
    free(areas.pieces);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    unsigned how = data[0], reads = how / 3;
    struct qkn_scanner *scanner = calloc(1, sizeof *scanner);
    if (!scanner)
        abort();
    scanner->types = KINDS[how % 3];
    qkn_scanner_expect(scanner, 1);
    data++;
    size--;
    for (size_t at = 0, i = 0; at < size; i++) {
        size_t part = reads ? (reads * 37 + i * 101) % 1100 + 1 : size;
        part = part < size - at ? part : size - at;
        feed(scanner, data + at, part);
        at += part;
    }
    free(scanner);
    return 0;
}
