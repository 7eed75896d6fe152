#include "core/packet.h"

#include <string.h>

#include "core/bytes.h"
#include "core/crc32.h"

void qmp_packet_seal(uint8_t *packet, uint8_t type, uint16_t session, uint16_t count, uint32_t sequence,
                     uint64_t base)
{
    qmp_put16(packet, QMP_MAGIC);
    packet[2] = QMP_VERSION;
    packet[3] = type;
    qmp_put16(packet + 4, session);
    qmp_put16(packet + 6, count);
    qmp_put32(packet + 8, sequence);
    qmp_put64(packet + 12, base);
    memset(qmp_record(packet, count), 0, (size_t)(QMP_RECORDS - count) * QMP_RECORD_BYTES);
    qmp_packet_reseal(packet);
}

void qmp_packet_reseal(uint8_t *packet)
{
    qmp_put32(packet + QMP_CRC_OFFSET, qmp_crc32(packet, QMP_CRC_OFFSET));
}
