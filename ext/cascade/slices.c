#include "slices.h"

void qkn_slices_transpose(uint64_t words[64])
{
    uint64_t mask = 0x00000000ffffffffu;
    for (unsigned half = 32; half; half >>= 1, mask ^= mask << half)
        for (unsigned base = 0; base < 64; base += 2 * half)
            for (unsigned i = base; i < base + half; i++) {
                uint64_t moved = ((words[i] >> half) ^ words[i + half]) & mask;
                words[i] ^= moved << half;
                words[i + half] ^= moved;
            }
}

void qkn_slices_fold(uint64_t *words, size_t count, unsigned exponent)
{
    for (size_t half = 1; half < (size_t)1 << exponent; half <<= 1)
        for (size_t x = 0; x < count; x += 2 * half) {
            uint64_t left = words[x];
            words[x] ^= words[x + half];
            words[x + half] = left;
        }
}
