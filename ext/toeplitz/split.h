/* The body of one kernel's tile; the includer defines LEAF_WORDS and leaf(), and chooses the instruction set.
 *
 * A tile of side 2k over seed quarters s0..s3 is a 2x2 matrix of k-tiles, B on the diagonal:
 *     y0 = B x0 + A x1        A: s0 s1, B: s1 s2, C: s2 s3
 *     y1 = C x0 + B x1
 * Three products do for four (the transpose of Karatsuba's):
 *     p = B (x0 + x1),  y0 = p + (A + B) x1,  y1 = p + (B + C) x0
 * A + B and B + C are overlapping windows of one sum, d = s0+s1, s1+s2, s2+s3. p comes first: the leaves read d at
 * every word offset, which stalls while its stores are under way (8 % of the whole). */

static inline void add(size_t words, const uint64_t *restrict a, const uint64_t *restrict b, uint64_t *restrict out)
{
    for (size_t i = 0; i < words; i++)
        out[i] = a[i] ^ b[i];
}

static void split(size_t side, const uint64_t *s, const uint64_t *x, uint64_t *y, uint64_t *scratch)
{
    if (side == LEAF_WORDS) {
        leaf(s, x, y);
        return;
    }
    size_t k = side / 2;
    uint64_t *y0 = y, *y1 = y + k, *d = scratch, *deeper = scratch + 3 * k;
    add(3 * k, s, s + k, d);
    add(k, x, x + k, y0);
    split(k, s + k, y0, y1, deeper);
    split(k, d, x + k, y0, deeper);
    split(k, d + k, x, d, deeper);
    for (size_t i = 0; i < k; i++) {
        y0[i] ^= y1[i];
        y1[i] ^= d[i];
    }
}
