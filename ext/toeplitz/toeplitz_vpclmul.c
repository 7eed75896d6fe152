/* Toeplitz tiles by VPCLMULQDQ on 512-bit registers: four products per instruction. */
#include "isa.h"
#include "kernels.h"

#if QKN_X86
ISA_BEGIN("avx512f,avx512vl,vpclmulqdq")

#define LEAF_WORDS 8

/* Products of seed words at even distance from the centre lie in place in y; those at odd distance lie one word
 * higher, and the ones that reach y[0] from below are summed apart: s[7 - j] x[j], all j at once. */
static inline void leaf(const uint64_t s[16], const uint64_t x[8], uint64_t y[8])
{
    const __m512i backwards = _mm512_set_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    __m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        __m512i word = _mm512_set1_epi64((long long)x[j]);
        __m512i window = _mm512_loadu_si512(s + 8 - j);
        even = _mm512_xor_si512(even, _mm512_clmulepi64_epi128(window, word, 0x00));
        odd = _mm512_xor_si512(odd, _mm512_clmulepi64_epi128(window, word, 0x01));
    }
    __m512i below = _mm512_loadu_si512(s);
    __m512i reversed = _mm512_permutexvar_epi64(backwards, _mm512_loadu_si512(x));
    __m512i edge = _mm512_xor_si512(_mm512_clmulepi64_epi128(below, reversed, 0x00),
                                    _mm512_clmulepi64_epi128(below, reversed, 0x11));
    edge = _mm512_xor_si512(edge, _mm512_shuffle_i64x2(edge, edge, 0x4e));
    edge = _mm512_xor_si512(edge, _mm512_shuffle_i64x2(edge, edge, 0xb1));
    _mm512_storeu_si512(y, _mm512_xor_si512(even, _mm512_alignr_epi64(odd, edge, 7)));
}

#include "split.h"

void qkn_toeplitz_tile_vpclmul(size_t side, const uint64_t *s, const uint64_t *x, uint64_t *y, uint64_t *scratch)
{
    split(side, s, x, y, scratch);
}

ISA_END
#endif
