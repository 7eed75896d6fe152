#ifndef QKN_CASCADE_ROLE_H
#define QKN_CASCADE_ROLE_H
#include <stddef.h>
#include <stdint.h>

/* Cascade with two equal roles (Brassard and Salvail, EUROCRYPT '93; study in arXiv:1407.3257).
 *
 * Each role holds its own key, which never changes here, and answers the same queries as its peer: the parity of a set
 * of positions that follows from the seed, the schedule and earlier differences, all public. So no addresses are sent,
 * both roles go through the same states, and no branch or address depends on a key bit.
 * A Frame's lowest pass with odd blocks is searched first, all its odd blocks at once. Frames go at their own pace. */
enum {
    QKN_CASCADE_FRAMES = 64,
    QKN_CASCADE_PASSES = 8,
    QKN_CASCADE_MASKS = 32,       /* confirming parities over the whole Block */
    QKN_CASCADE_ROUNDS = 1 << 16, /* ten times what honest keys with 12 % of errors need */
    QKN_CASCADE_MIN_LOG2 = 10,
    QKN_CASCADE_MAX_LOG2 = 16,
};

enum qkn_cascade_status {
    QKN_CASCADE_GOES_ON = 0,
    QKN_CASCADE_FINISHED = 1,
    QKN_CASCADE_LENGTH = -1,         /* the peer's message is not as long as ours */
    QKN_CASCADE_PADDING = -2,        /* bits after its last parity are set */
    QKN_CASCADE_CONTRADICTION = -3,  /* its parities put a second error where one was corrected */
    QKN_CASCADE_TOO_LONG = -4,       /* QKN_CASCADE_ROUNDS exceeded */
    QKN_CASCADE_SHAPE = -5,          /* the shape or a size is not allowed */
};

struct qkn_cascade_shape {
    unsigned frames;                        /* 1..QKN_CASCADE_FRAMES */
    unsigned frame_log2;                    /* Frames of 2^frame_log2 bits */
    unsigned passes;                        /* 1..QKN_CASCADE_PASSES */
    uint8_t exponents[QKN_CASCADE_PASSES];  /* block size 2^e of each pass, 1 <= e <= frame_log2 */
};

struct qkn_cascade;

/* Bytes of memory for qkn_cascade_open, or 0 for a shape that is not allowed. */
size_t qkn_cascade_bytes(const struct qkn_cascade_shape *shape);
/* Begin in zeroed, 64-byte aligned memory. key: frames * 2^frame_log2 bits, frame-major. The first message is ready. */
int qkn_cascade_open(void *memory, size_t bytes, const struct qkn_cascade_shape *shape, const uint8_t seed[32],
                     const uint8_t *key, size_t key_bytes);
/* Take the peer's message of this round and make our next, until QKN_CASCADE_FINISHED. After an error the state is
 * only good for wiping. */
int qkn_cascade_advance(struct qkn_cascade *cascade, const uint8_t *received, size_t bytes);

/* Our message of this round; its parities, LSB first, padded with zeros to whole bytes. */
const uint8_t *qkn_cascade_message(const struct qkn_cascade *cascade, size_t *bytes);
/* Parities that each role has sent, every query once. */
uint64_t qkn_cascade_parities(const struct qkn_cascade *cascade);
unsigned qkn_cascade_rounds(const struct qkn_cascade *cascade);
uint32_t qkn_cascade_frame_errors(const struct qkn_cascade *cascade, unsigned frame);
/* out of key_bytes: our key, with the found errors flipped if correct is 1. */
void qkn_cascade_key(const struct qkn_cascade *cascade, int correct, uint8_t *out);
/* out of key_bytes: ones where the keys differed. */
void qkn_cascade_error_mask(const struct qkn_cascade *cascade, uint8_t *out);
#endif
