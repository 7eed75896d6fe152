/* POLYVAL by carry-less multiplication: eight blocks per reduction. */
#include "isa.h"
#include "kernels.h"

#if QKN_X86
ISA_BEGIN("pclmul,avx2")

struct product {
    __m128i low, middle, high;
};

static inline __m128i load(const void *at)
{
    return _mm_loadu_si128((const __m128i *)at);
}

static inline void add_product(struct product *sum, __m128i a, __m128i b)
{
    sum->low = _mm_xor_si128(sum->low, _mm_clmulepi64_si128(a, b, 0x00));
    sum->high = _mm_xor_si128(sum->high, _mm_clmulepi64_si128(a, b, 0x11));
    sum->middle = _mm_xor_si128(sum->middle, _mm_clmulepi64_si128(a, b, 0x01));
    sum->middle = _mm_xor_si128(sum->middle, _mm_clmulepi64_si128(a, b, 0x10));
}

/* One word is cleared by adding word (x^121 + x^126 + x^127 + x^128 + 1): a swap and one product. */
static inline __m128i clear_word(__m128i low)
{
    const __m128i polynomial = _mm_set_epi64x(0, (long long)0xc200000000000000u);
    return _mm_xor_si128(_mm_shuffle_epi32(low, 0x4e), _mm_clmulepi64_si128(low, polynomial, 0x00));
}

static inline __m128i reduce(struct product r)
{
    __m128i low = _mm_xor_si128(r.low, _mm_slli_si128(r.middle, 8));
    __m128i high = _mm_xor_si128(r.high, _mm_srli_si128(r.middle, 8));
    return _mm_xor_si128(high, clear_word(clear_word(low)));
}

static inline __m128i dot(__m128i a, __m128i b)
{
    struct product product = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128()};
    add_product(&product, a, b);
    return reduce(product);
}

void qkn_polyval_dot_clmul(const uint64_t a[2], const uint64_t b[2], uint64_t out[2])
{
    _mm_storeu_si128((__m128i *)out, dot(load(a), load(b)));
}

void qkn_polyval_blocks_clmul(const uint8_t *data, size_t blocks, struct qkn_polyval *out)
{
    __m128i sum = load(out->sum);
    for (; blocks >= QKN_POLYVAL_POWERS; blocks -= QKN_POLYVAL_POWERS) {
        struct product product = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128()};
        for (int i = QKN_POLYVAL_POWERS - 1; i >= 0; i--, data += QKN_POLYVAL_BLOCK) {
            add_product(&product, _mm_xor_si128(sum, load(data)), load(out->powers[i]));
            sum = _mm_setzero_si128();
        }
        sum = reduce(product);
    }
    for (; blocks; blocks--, data += QKN_POLYVAL_BLOCK)
        sum = dot(_mm_xor_si128(sum, load(data)), load(out->powers[0]));
    _mm_storeu_si128((__m128i *)out->sum, sum);
}

ISA_END
#endif
