#include <string.h>

#include "optics/optics.h"
#include "optics/philox.h"

/* 2048 bits that are each 1 with probability one_limit / 65536, compared with their uniforms one bit plane at a time,
 * the lowest first: above the lowest set bit of the limit, a 1 in the limit lets a 0 of the uniform decide for 1 and a
 * 0 in the limit lets a 1 decide for 0. Word group 16 g + b of the stream is plane b of chunk g. */
static void draw(struct qkn_entropy *entropy, uint64_t chunk)
{
    uint32_t *words = entropy->words, plane[QKN_WORD_GROUP];
    memset(words, entropy->one_limit >> QKN_ENTROPY_PLANES ? 0xFF : 0, sizeof entropy->words);
    const unsigned lowest = entropy->one_limit ? (unsigned)__builtin_ctz(entropy->one_limit) : QKN_ENTROPY_PLANES;
    for (unsigned b = lowest; b < QKN_ENTROPY_PLANES; b++) {
        entropy->kernel->words(entropy->seed, QKN_STREAM_ENTROPY, chunk * QKN_ENTROPY_PLANES + b, 1, plane);
        for (unsigned i = 0; i < QKN_WORD_GROUP; i++)
            words[i] = entropy->one_limit >> b & 1 ? words[i] | ~plane[i] : words[i] & ~plane[i];
    }
    entropy->chunk = chunk + 1;
}

static const uint8_t *byte_at(struct qkn_entropy *entropy, uint64_t position)
{
    uint64_t chunk = position / QKN_ENTROPY_CHUNK;
    if (entropy->chunk != chunk + 1)
        draw(entropy, chunk);
    return (const uint8_t *)entropy->words + position % QKN_ENTROPY_CHUNK;
}

void qkn_entropy_bytes(void *context, uint64_t first, uint32_t size, uint8_t *out)
{
    struct qkn_entropy *entropy = context;
    while (size > 0) {
        uint64_t run = QKN_ENTROPY_CHUNK - first % QKN_ENTROPY_CHUNK;
        if (first >= entropy->stuck_after) {
            memset(out, *byte_at(entropy, entropy->stuck_after), size);
            return;
        }
        if (run > size)
            run = size;
        if (run > entropy->stuck_after - first)
            run = entropy->stuck_after - first;
        memcpy(out, byte_at(entropy, first), (size_t)run);
        out += run;
        first += run;
        size -= (uint32_t)run;
    }
}
