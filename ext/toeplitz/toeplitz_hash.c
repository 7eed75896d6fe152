/* The Toeplitz hash of any shape: the dense part cut into square tiles, and what surrounds them. */
#include "toeplitz.h"

#include <string.h>

#include "cpu.h"
#include "isa.h"
#include "kernels.h"

static const struct {
    qkn_toeplitz_tile *tile;
    unsigned features;
} kernels[QKN_TOEPLITZ_KERNELS] = {
    [QKN_TOEPLITZ_PORTABLE] = {qkn_toeplitz_tile_portable, 0},
#if QKN_X86
    [QKN_TOEPLITZ_CLMUL] = {qkn_toeplitz_tile_clmul, QKN_CPU_PCLMUL | QKN_CPU_AVX2},
    [QKN_TOEPLITZ_VPCLMUL] = {qkn_toeplitz_tile_vpclmul, QKN_CPU_VPCLMUL | QKN_CPU_AVX512F | QKN_CPU_AVX512VL},
#endif
};

int qkn_toeplitz_state(int kernel)
{
    if (kernel < 0 || kernel >= QKN_TOEPLITZ_KERNELS || !kernels[kernel].tile)
        return QKN_KERNEL_NOT_BUILT;
    unsigned needs = kernels[kernel].features;
    return (qkn_cpu_features() & needs) == needs ? QKN_KERNEL_RUNS : QKN_KERNEL_CPU_LACKS;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Words for `bits`, in whole smallest tiles: every window of every tile then lies on a cache line. */
static size_t tiled_words(size_t bits)
{
    size_t tile_bits = 64 * QKN_TOEPLITZ_TILE_MIN;
    return (bits + tile_bits - 1) / tile_bits * QKN_TOEPLITZ_TILE_MIN;
}

/* The smallest tile that covers `words` at once. */
static size_t covering_side(size_t words)
{
    size_t side = QKN_TOEPLITZ_TILE_MIN;
    while (side < words)
        side *= 2;
    return side;
}

int qkn_toeplitz_plan(size_t bits_in, size_t bits_out, int modified, struct qkn_toeplitz *out)
{
    if (bits_out < 1 || bits_out > bits_in || bits_in > QKN_TOEPLITZ_BITS_MAX)
        return -1;
    struct qkn_toeplitz plan = {.bits_in = bits_in, .bits_out = bits_out, .modified = modified};
    plan.columns = modified ? bits_in - bits_out : bits_in;
    plan.seed_bits = plan.columns + bits_out - 1;
    plan.rows_words = tiled_words(bits_out);
    plan.columns_words = tiled_words(plan.columns);
    plan.overhang = covering_side(smaller(plan.rows_words, plan.columns_words));
    plan.seed_at = plan.overhang;
    plan.source_at = plan.seed_at + plan.columns_words + plan.rows_words + plan.overhang;
    plan.product_at = plan.source_at + plan.columns_words + plan.overhang;
    plan.scratch_at = plan.product_at + plan.overhang;
    plan.result_at = plan.scratch_at + QKN_TOEPLITZ_SCRATCH(plan.overhang);
    plan.words = plan.result_at + plan.rows_words;
    *out = plan;
    return 0;
}

/* The 64 bits of a string of `bits` bits from position `at`; zeros beyond its end. */
static uint64_t word_at(const uint8_t *string, size_t bits, size_t at)
{
    uint64_t word = 0;
    size_t first = at / 8, bytes = (bits + 7) / 8;
    unsigned shift = at % 8;
    if (at + 72 <= bits) {
        memcpy(&word, string + first, sizeof word);
        return word >> shift | (uint64_t)string[first + 8] << 1 << (63 - shift);
    }
    if (at >= bits)
        return 0;
    size_t left = bits - at;
    for (size_t i = 0; i < 8 && first + i < bytes; i++)
        word |= (uint64_t)string[first + i] << 8 * i;
    word >>= shift;
    if (first + 8 < bytes)
        word |= (uint64_t)string[first + 8] << 1 << (63 - shift);
    return left < 64 ? word & (((uint64_t)1 << left) - 1) : word;
}

/* Bits [from, to) of a string, filled up with zeros to a whole word. */
static void copy_bits(const uint8_t *string, size_t from, size_t to, uint64_t *out)
{
    for (size_t at = from; at < to; at += 64)
        *out++ = word_at(string, to, at);
}

/* In the workspace, row i and column j meet at bit 64 columns_words + i - j: the seed is moved up to its place. */
void qkn_toeplitz_load(const struct qkn_toeplitz *plan, const uint8_t *seed, uint64_t *workspace)
{
    size_t rise = 64 * plan->columns_words - plan->columns + 1;
    uint64_t *to = workspace + plan->seed_at + rise / 64;
    unsigned shift = rise % 64;
    *to++ = word_at(seed, plan->seed_bits, 0) << shift;
    if (plan->seed_bits > 64 - shift)
        copy_bits(seed, 64 - shift, plan->seed_bits, to);
}

struct dense {
    qkn_toeplitz_tile *tile;
    const struct qkn_toeplitz *plan;
    uint64_t *workspace;
};

static void add_tile(const struct dense *dense, size_t side, size_t row, size_t column, size_t rows)
{
    const struct qkn_toeplitz *plan = dense->plan;
    uint64_t *product = dense->workspace + plan->product_at, *result = dense->workspace + plan->result_at + row;
    const uint64_t *centre = dense->workspace + plan->seed_at + plan->columns_words + row - column;
    dense->tile(side, centre - side, dense->workspace + plan->source_at + column, product,
                dense->workspace + plan->scratch_at);
    for (size_t i = 0; i < rows; i++)
        result[i] ^= product[i];
}

/* Add the product of a rectangle of the dense part. A tile costs its side to the power 1.58: from five eighths
 * of a tile on, one that overhangs is cheaper than the pieces (3 % over shapes against three quarters). */
static void add_rectangle(const struct dense *dense, size_t row, size_t rows, size_t column, size_t columns)
{
    while (rows && columns) {
        size_t thickness = smaller(rows, columns), side = covering_side(thickness);
        if (8 * thickness <= 5 * side)
            side /= 2;
        size_t tiled_rows = rows < side ? rows : rows / side * side;
        size_t tiled_columns = columns < side ? columns : columns / side * side;
        for (size_t r = 0; r < tiled_rows; r += side)
            for (size_t c = 0; c < tiled_columns; c += side)
                add_tile(dense, side, row + r, column + c, smaller(side, tiled_rows - r));
        add_rectangle(dense, row + tiled_rows, rows - tiled_rows, column, tiled_columns);
        column += tiled_columns;
        columns -= tiled_columns;
    }
}

int qkn_toeplitz_apply(int kernel, const struct qkn_toeplitz *plan, uint64_t *workspace, const uint8_t *source,
                       uint8_t *out)
{
    if (kernel < 0 || kernel >= QKN_TOEPLITZ_KERNELS || !kernels[kernel].tile)
        return -1;
    uint64_t *result = workspace + plan->result_at;
    copy_bits(source, 0, plan->columns, workspace + plan->source_at);
    if (plan->modified)
        copy_bits(source, plan->columns, plan->bits_in, result);
    struct dense dense = {kernels[kernel].tile, plan, workspace};
    add_rectangle(&dense, 0, plan->rows_words, 0, plan->columns_words);
    size_t whole = plan->bits_out / 8, rest = plan->bits_out % 8;
    memcpy(out, result, whole);
    if (rest)
        out[whole] = (uint8_t)(((const uint8_t *)result)[whole] & ((1u << rest) - 1));
    explicit_bzero(workspace + plan->source_at, (plan->words - plan->source_at) * sizeof *workspace);
    return 0;
}
