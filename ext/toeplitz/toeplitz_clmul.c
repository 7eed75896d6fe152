/* Toeplitz tiles by PCLMULQDQ, sums by AVX2. */
#include "isa.h"
#include "kernels.h"

#if QKN_X86
ISA_BEGIN("pclmul,avx2")

#define LEAF_WORDS 8

/* Products of seed words at even distance from the centre straddle two words of y that lie in one register; those at
 * odd distance lie one word higher, and the one that reaches y[0] from below is summed apart. */
static inline void leaf(const uint64_t s[16], const uint64_t x[8], uint64_t y[8])
{
    __m128i even[4], odd[4], edge = _mm_setzero_si128();
    for (int i = 0; i < 4; i++)
        even[i] = odd[i] = _mm_setzero_si128();
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        __m128i word = _mm_loadl_epi64((const __m128i *)(x + j));
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m128i pair = _mm_loadu_si128((const __m128i *)(s + 8 - j + 2 * i));
            even[i] = _mm_xor_si128(even[i], _mm_clmulepi64_si128(pair, word, 0x00));
            odd[i] = _mm_xor_si128(odd[i], _mm_clmulepi64_si128(pair, word, 0x01));
        }
        __m128i below = _mm_loadl_epi64((const __m128i *)(s + 7 - j));
        edge = _mm_xor_si128(edge, _mm_clmulepi64_si128(below, word, 0x00));
    }
    for (int i = 0; i < 4; i++) {
        __m128i risen = _mm_alignr_epi8(odd[i], i ? odd[i - 1] : edge, 8);
        _mm_storeu_si128((__m128i *)(y + 2 * i), _mm_xor_si128(even[i], risen));
    }
}

#include "split.h"

void qkn_toeplitz_tile_clmul(size_t side, const uint64_t *s, const uint64_t *x, uint64_t *y, uint64_t *scratch)
{
    split(side, s, x, y, scratch);
}

ISA_END
#endif
