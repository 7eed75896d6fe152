/* Both roles of a reconciliation; the messages of one are altered from some round on by what the input holds. */
#include "cascade_role.h"

#include <stdlib.h>
#include <string.h>

#include "driver.h"

enum { HEADER = 7 };

struct role {
    void *memory;
    uint8_t *key;
};

static int open_role(struct role *role, const struct qkn_cascade_shape *shape, unsigned errors, const uint8_t seed[32])
{
    size_t bytes = qkn_cascade_bytes(shape), key_bytes = ((size_t)shape->frames << shape->frame_log2) / 8;
    role->memory = aligned_alloc(64, bytes);
    role->key = malloc(key_bytes);
    if (!role->memory || !role->key)
        abort();
    memset(role->memory, 0, bytes);
    for (size_t i = 0; i < key_bytes; i++)
        role->key[i] = (uint8_t)(i * 37 + (i >> 3) * 11);
    for (unsigned i = 0; i < errors; i++) {
        size_t at = (i * 2654435761u) % (8 * key_bytes);
        role->key[at / 8] ^= (uint8_t)(1 << at % 8);
    }
    return qkn_cascade_open(role->memory, bytes, shape, seed, role->key, key_bytes);
}

static int tell(struct role *to, const uint8_t *message, size_t bytes)
{
    uint8_t *copy = malloc(bytes ? bytes : 1);
    if (!copy)
        abort();
    memcpy(copy, message, bytes);
    int status = qkn_cascade_advance(to->memory, copy, bytes);
    free(copy);
    return status;
}

static void reconcile(struct role *alice, struct role *bob, unsigned start, const uint8_t *lie, size_t left)
{
    uint8_t buffer[4096];
    for (unsigned round = 0; round < 600; round++) {
        size_t to_bob, to_alice;
        const uint8_t *said = qkn_cascade_message(alice->memory, &to_bob);
        if (to_bob > sizeof buffer - 1)
            return;
        memcpy(buffer, said, to_bob);
        if (round >= start && left) {
            if (lie[0] == 0xfe && to_bob)
                to_bob--;
            else if (lie[0] == 0xfd)
                buffer[to_bob++] = 0;
            else
                for (size_t i = 0; i < to_bob && i < left; i++)
                    buffer[i] ^= lie[i];
            size_t used = left < 4 ? left : 4;
            lie += used;
            left -= used;
        }
        const uint8_t *answer = qkn_cascade_message(bob->memory, &to_alice);
        uint8_t *kept = malloc(to_alice ? to_alice : 1);
        if (!kept)
            abort();
        memcpy(kept, answer, to_alice);
        int at_bob = tell(bob, buffer, to_bob), at_alice = tell(alice, kept, to_alice);
        free(kept);
        if (at_bob != QKN_CASCADE_GOES_ON || at_alice != QKN_CASCADE_GOES_ON)
            return;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEADER)
        return 0;
    struct qkn_cascade_shape shape = {
        .frames = 1 + data[0] % 3, .frame_log2 = 10 + data[1] % 2, .passes = 1 + data[2] % QKN_CASCADE_PASSES};
    for (unsigned p = 0; p < shape.passes; p++) {
        unsigned exponent = 1 + data[3] % 6 + p * (1 + data[3] / 6 % 3);
        shape.exponents[p] = (uint8_t)(exponent < shape.frame_log2 ? exponent : shape.frame_log2);
    }
    uint8_t seed[32] = {data[6]};
    struct role alice, bob;
    if (open_role(&alice, &shape, 0, seed) != QKN_CASCADE_GOES_ON || open_role(&bob, &shape, data[4], seed) != QKN_CASCADE_GOES_ON)
        abort();
    reconcile(&alice, &bob, data[5] % 40, data + HEADER, size - HEADER);
    free(alice.memory);
    free(alice.key);
    free(bob.memory);
    free(bob.key);
    return 0;
}
