/* Bob's list as Alice reads it, and her answer as Bob does: first byte which, then u16 events and the fields. */
#include "sifting.h"

#include <stdlib.h>
#include <string.h>

#include "driver.h"

enum { SLOTS = 256 };

static uint8_t *zeros(size_t bytes)
{
    uint8_t *memory = calloc(bytes ? bytes : 1, 1);
    if (!memory)
        abort();
    return memory;
}

static uint8_t *copy_of(const uint8_t *data, size_t bytes)
{
    uint8_t *memory = malloc(bytes ? bytes : 1);
    if (!memory)
        abort();
    memcpy(memory, data, bytes);
    return memory;
}

static void take_list(const uint8_t *data, size_t size, size_t events)
{
    size_t bytes = (events + 7) / 8;
    if (events > SLOTS || size < bytes)
        return; /* checked by the caller of the kernel */
    uint8_t choices[SLOTS / 2];
    for (size_t i = 0; i < sizeof choices; i++)
        choices[i] = (uint8_t)((i * 73 + 5) & 0x77);
    uint8_t *nibbles = copy_of(choices, sizeof choices);
    uint8_t *bases = copy_of(data, bytes), *slots = copy_of(data + bytes, size - bytes);
    uint8_t *matched = zeros(bytes), *intensities = zeros((2 * events + 7) / 8), *x = zeros(bytes), *z = zeros(bytes);
    uint8_t *z_intensities = zeros((2 * events + 7) / 8);
    struct qkn_sift_answer answer;
    if (qkn_sift_answer(slots, size - bytes, bases, events, nibbles, SLOTS, 2, matched, intensities, x, z, z_intensities,
                        &answer) == QKN_SIFT_OK &&
        (answer.matched > events || answer.x + answer.z != answer.matched))
        abort();
    free(nibbles);
    free(bases);
    free(slots);
    free(matched);
    free(intensities);
    free(x);
    free(z);
    free(z_intensities);
}

static void take_answer(const uint8_t *data, size_t size, size_t events)
{
    size_t bytes = (events + 7) / 8, matched_count = 0, x_count = 0;
    if (events > SLOTS || size < 3 * bytes)
        return;
    uint8_t *bits = copy_of(data, bytes), *bases = copy_of(data + bytes, bytes), *matched = copy_of(data + 2 * bytes, bytes);
    data += 3 * bytes;
    size -= 3 * bytes;
    if (qkn_sift_count(bases, matched, events, &matched_count, &x_count) == QKN_SIFT_OK) {
        size_t pairs = (2 * matched_count + 7) / 8, xs = (x_count + 7) / 8;
        if (matched_count > events || x_count > matched_count)
            abort();
        if (size >= pairs + xs) {
            uint8_t *intensities = copy_of(data, pairs), *x = copy_of(data + pairs, xs);
            uint8_t *z = zeros((matched_count + 7) / 8), *z_intensities = zeros(pairs);
            struct qkn_sift_outcome outcome;
            if (qkn_sift_apply(bits, bases, events, matched, intensities, x, 3, z, z_intensities, &outcome) == QKN_SIFT_OK &&
                outcome.matched != matched_count)
                abort();
            free(intensities);
            free(x);
            free(z);
            free(z_intensities);
        }
    }
    free(bits);
    free(bases);
    free(matched);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3)
        return 0;
    size_t events = (size_t)data[1] | (size_t)data[2] << 8;
    (data[0] & 1 ? take_answer : take_list)(data + 3, size - 3, events);
    return 0;
}
