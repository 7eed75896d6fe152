#ifndef QMP_CRC32_H
#define QMP_CRC32_H
#include <stddef.h>
#include <stdint.h>

/* Fill the tables; once, before the first qmp_crc32. */
void qmp_crc32_prepare(void);
/* CRC-32 of IEEE 802.3 (reflected 0xEDB88320, as zlib's crc32). */
uint32_t qmp_crc32(const uint8_t *data, size_t size);
#endif
