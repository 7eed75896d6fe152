#include "core/crc32.h"

/* Eight tables: byte i of eight is advanced past the seven - i bytes behind it (Kounavis and Berry, slicing-by-8). */
static uint32_t table[8][256];

void qmp_crc32_prepare(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
        table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            table[k][i] = (table[k - 1][i] >> 8) ^ table[0][table[k - 1][i] & 0xFFu];
}

uint32_t qmp_crc32(const uint8_t *data, size_t size)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (; size >= 8; size -= 8, data += 8)
        crc = table[7][(crc ^ data[0]) & 0xFFu] ^ table[6][((crc >> 8) ^ data[1]) & 0xFFu] ^
              table[5][((crc >> 16) ^ data[2]) & 0xFFu] ^ table[4][(crc >> 24) ^ data[3]] ^
              table[3][data[4]] ^ table[2][data[5]] ^ table[1][data[6]] ^ table[0][data[7]];
    for (; size > 0; size--, data++)
        crc = (crc >> 8) ^ table[0][(crc ^ *data) & 0xFFu];
    return ~crc;
}
