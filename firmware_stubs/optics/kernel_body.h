/* The loops of one kernel; the including file sets the instruction set and QKN_KERNEL(verb). Plain C over sixteen
 * lanes of one Philox block each, written so that gcc and clang vectorise it. */
#include <stdint.h>
#include <string.h>

#include "optics/kernel.h"
#include "optics/philox.h"

#define LANES 16u

/* Slot 64 g + 2 l of group g has word 0 of block 16 g + l, its successor word 1; words 2 and 3 serve the slots 32
 * further on. Two neighbours share a byte. */
void QKN_KERNEL(choices)(uint64_t seed, uint64_t first, uint32_t groups, const uint32_t *limits, uint8_t *out)
{
    const uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    const uint32_t limit0 = limits[0], limit1 = limits[1], limit2 = limits[2], limit3 = limits[3], limit4 = limits[4];
#define NIBBLE(cell, word) (((cell) & 1u) | ((word) & 1u) << 1 | ((cell) & 6u) << 1)
#define CELL(word)                                                                                                  \
    ((uint32_t)((word) >> 1 >= limit0) + (uint32_t)((word) >> 1 >= limit1) + (uint32_t)((word) >> 1 >= limit2) +    \
     (uint32_t)((word) >> 1 >= limit3) + (uint32_t)((word) >> 1 >= limit4))
    for (uint32_t g = 0; g < groups; g++, out += 2 * LANES) {
        const uint64_t block = (first + g) * LANES;
        const uint32_t low = (uint32_t)block, high = (uint32_t)(block >> 32);
        uint32_t near[LANES], far[LANES];
        for (uint32_t l = 0; l < LANES; l++) {
            uint32_t c0 = low + l, c1 = high, c2 = QKN_STREAM_CHOICES, c3 = 0;
            QKN_PHILOX(key0, key1);
            near[l] = NIBBLE(CELL(c0), c0) | NIBBLE(CELL(c1), c1) << 4;
            far[l] = NIBBLE(CELL(c2), c2) | NIBBLE(CELL(c3), c3) << 4;
        }
        for (uint32_t l = 0; l < LANES; l++) {
            out[l] = (uint8_t)near[l];
            out[LANES + l] = (uint8_t)far[l];
        }
    }
#undef CELL
#undef NIBBLE
}

/* Word 16 w + l of group g is word w of block 16 g + l. */
void QKN_KERNEL(words)(uint64_t seed, uint32_t stream, uint64_t first, uint32_t groups, uint32_t *restrict out)
{
    const uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    for (uint32_t g = 0; g < groups; g++, out += 4 * LANES) {
        const uint64_t block = (first + g) * LANES;
        const uint32_t low = (uint32_t)block, high = (uint32_t)(block >> 32);
        for (uint32_t l = 0; l < LANES; l++) {
            uint32_t c0 = low + l, c1 = high, c2 = stream, c3 = 0;
            QKN_PHILOX(key0, key1);
            out[l] = c0;
            out[LANES + l] = c1;
            out[2 * LANES + l] = c2;
            out[3 * LANES + l] = c3;
        }
    }
}

void QKN_KERNEL(blocks)(uint64_t seed, uint32_t stream, uint64_t base, const uint16_t *offset, uint32_t count,
                        uint32_t stride, uint32_t *restrict out)
{
    const uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    const uint32_t low = (uint32_t)base, high = (uint32_t)(base >> 32);
    for (uint32_t i = 0; i < count; i += LANES, offset += LANES, out += LANES) {
        uint32_t word0[LANES], word1[LANES], word2[LANES], word3[LANES];
        for (uint32_t l = 0; l < LANES; l++) {
            uint32_t c0 = low + offset[l], c1 = high, c2 = stream, c3 = 0;
            QKN_PHILOX(key0, key1);
            word0[l] = c0;
            word1[l] = c1;
            word2[l] = c2;
            word3[l] = c3;
        }
        memcpy(out, word0, sizeof word0);
        memcpy(out + stride, word1, sizeof word1);
        memcpy(out + 2 * stride, word2, sizeof word2);
        memcpy(out + 3 * stride, word3, sizeof word3);
    }
}

const struct qkn_optics_kernel QKN_OPTICS_KERNEL = {
    QKN_KERNEL_NAME, QKN_KERNEL(choices), QKN_KERNEL(words), QKN_KERNEL(blocks)};
