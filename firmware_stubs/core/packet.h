#ifndef QMP_PACKET_H
#define QMP_PACKET_H
#include <stdint.h>

/* One packet of QMP/1, all fields little-endian:
 * magic u16, version u8, type u8, session u16, count u16, sequence u32, base u64, 61 records of 8 bytes, CRC-32 u32. */
enum {
    QMP_MAGIC = 0x4B51,
    QMP_VERSION = 1,
    QMP_PACKET_BYTES = 512,
    QMP_HEADER_BYTES = 20,
    QMP_RECORDS = 61,
    QMP_RECORD_BYTES = 8,
    QMP_PAYLOAD_BYTES = QMP_RECORDS * QMP_RECORD_BYTES,
    QMP_CRC_OFFSET = QMP_HEADER_BYTES + QMP_PAYLOAD_BYTES,
    QMP_SLOTS_PER_PACKET = 2 * QMP_PAYLOAD_BYTES, /* transmitter choices: one nibble per slot */
};

enum qmp_packet_type {
    QMP_TIME_TAGS = 1,
    QMP_TX_CHOICES = 2,
    QMP_RNG_RAW = 3,
    QMP_SYNC = 5,
    QMP_GAP = 6,
};

static inline uint8_t *qmp_record(uint8_t *packet, unsigned index)
{
    return packet + QMP_HEADER_BYTES + index * QMP_RECORD_BYTES;
}

/* Write the header around records that are in place, zero the unused ones, append the CRC. */
void qmp_packet_seal(uint8_t *packet, uint8_t type, uint16_t session, uint16_t count, uint32_t sequence,
                     uint64_t base);
/* Make the CRC fit a packet that was changed after sealing. */
void qmp_packet_reseal(uint8_t *packet);
#endif
