#ifndef QKN_TOEPLITZ_H
#define QKN_TOEPLITZ_H
#include <stddef.h>
#include <stdint.h>

/* Hashing of n bits to m by a Toeplitz matrix over GF(2), exact. Constant time in seed and source.
 *     full:     y = T x,                          T[i][j] = s[i - j + n - 1],        n + m - 1 seed bits
 *     modified: y = T' x[0..n-m) xor x[n-m..n),   T'[i][j] = s[i - j + (n-m) - 1],   n - 1 seed bits (arXiv:1311.5322)
 * Both are one matrix of m rows, here called the dense part, and perhaps an identity to its right. */

struct qkn_toeplitz {
    size_t bits_in, bits_out, seed_bits;
    size_t columns; /* of the dense part: n, or n - m */
    int modified;
    /* The workspace, in words: seed, source, product of one tile, scratch of the tile, result. Tiles overhang the
     * dense part by at most `overhang`, hence the zeros around seed and source. */
    size_t rows_words, columns_words, overhang;
    size_t seed_at, source_at, product_at, scratch_at, result_at, words;
};

enum qkn_toeplitz_kernel { QKN_TOEPLITZ_PORTABLE, QKN_TOEPLITZ_CLMUL, QKN_TOEPLITZ_VPCLMUL, QKN_TOEPLITZ_KERNELS };

#define QKN_TOEPLITZ_BITS_MAX ((size_t)1 << 30)

/* enum qkn_kernel_state of a kernel. */
int qkn_toeplitz_state(int kernel);

/* Lay out the workspace for n -> m; 0, or -1 unless 1 <= m <= n <= QKN_TOEPLITZ_BITS_MAX. */
int qkn_toeplitz_plan(size_t bits_in, size_t bits_out, int modified, struct qkn_toeplitz *out);

/* Put ceil(seed_bits / 8) bytes into a workspace of plan->words zeroed words; later bits are ignored. */
void qkn_toeplitz_load(const struct qkn_toeplitz *plan, const uint8_t *seed, uint64_t *workspace);

/* Hash ceil(n / 8) bytes to ceil(m / 8), bits of `out` above m zero; source and out may overlap. What the workspace
 * held of source and result is wiped. -1 if the kernel does not run here. */
int qkn_toeplitz_apply(int kernel, const struct qkn_toeplitz *plan, uint64_t *workspace, const uint8_t *source,
                       uint8_t *out);
#endif
