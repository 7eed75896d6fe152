#ifndef QKN_SLICES_H
#define QKN_SLICES_H
#include <stddef.h>
#include <stdint.h>

/* Up to 64 Frames side by side: bit f of word i is bit i of Frame f. */

/* Transpose 64 words of 64 bits in place: bit j of word i becomes bit i of word j. */
void qkn_slices_transpose(uint64_t words[64]);

/* Replace words by the parities that a binary search asks for, in every aligned block of 2^exponent words:
 * word x that is not the first of its block becomes the parity of the lowest_bit(x) words before x, counted from
 * x - lowest_bit(x); the first becomes the parity of the whole block. */
void qkn_slices_fold(uint64_t *words, size_t count, unsigned exponent);
#endif
