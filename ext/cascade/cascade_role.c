#include "cascade_role.h"

#include <string.h>

#include "draws.h"
#include "slices.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "keys and messages are read as little-endian words");

enum { TOPIC_PERMUTATION = 1, TOPIC_MASKS = 2, TOPIC_MASK_ORDER = 3 };

/* 64 positions of one pass of one Frame. Bit x is about the interval [x - lowest_bit(x), x), the left half of the
 * search node whose middle is x, in the indexing of qkn_slices_fold.
 * difference: parity of the errors still in it if known, else parity of the errors already taken out of it; so an
 * answer is xored in, and an error flips it, whether known or not. */
struct node {
    uint64_t own;
    uint64_t known;
    uint64_t difference;
};

enum phase {
    EVEN = 0,  /* every block of every pass agrees */
    OPENING,   /* block parities of the next pass were asked */
    SEARCHING, /* search nodes of the current wave were asked */
};

struct frame {
    uint16_t *asked; /* middles of the asked nodes, in block order */
    uint32_t asked_count;
    uint32_t errors;
    uint32_t own_masks;     /* parity under each mask of our key */
    uint32_t removed_masks; /* and of the errors found */
    uint8_t phase;
    uint8_t opened; /* passes whose block parities are known */
    uint8_t pass;   /* the pass being searched */
    uint8_t mask_order[QKN_CASCADE_MASKS];
};

struct pass {
    unsigned exponent;
    unsigned blocks;
    unsigned odd_words;     /* per Frame */
    uint16_t *order;        /* order[y]: position of the key that stands at y */
    uint16_t *place;        /* the inverse */
    uint64_t *odd;          /* [frame][odd_words]: blocks with an odd number of errors left */
    uint64_t path[64];      /* within a word: nodes whose left half holds bit y */
};

enum stage {
    CASCADING = 0,
    MASKING,          /* the confirmation masks were asked */
    LOCATING_FRAME,   /* a failing mask is bisected over the Frames */
    LOCATING_POSITION /* and then within one */
};

struct qkn_cascade {
    struct qkn_cascade_shape shape;
    unsigned bits;  /* of a Frame */
    unsigned words; /* of a Frame */
    unsigned rounds;
    uint64_t parities;

    enum stage stage;
    int masks_known;
    uint32_t mask_difference; /* of the keys as they were */
    unsigned located_mask, located_frame, low, high;

    uint64_t *message;    /* what we send in this round */
    uint64_t *difference; /* of the last round's messages */
    size_t message_bits, difference_at;

    uint64_t *key;    /* [frame][words] */
    uint64_t *errors; /* [frame][words] */
    struct node *nodes; /* [frame][pass][words] */
    uint32_t *masks;  /* [position]: the masks that hold it */
    uint64_t *slices, *folded;

    struct pass passes[QKN_CASCADE_PASSES];
    struct frame frames[QKN_CASCADE_FRAMES];
};

struct arena {
    unsigned char *base; /* NULL while measuring */
    size_t used;
};

static void *carve(struct arena *arena, size_t count, size_t size)
{
    void *piece = arena->base ? arena->base + arena->used : NULL;
    arena->used += (count * size + 63) & ~(size_t)63;
    return piece;
}

static int is_allowed(const struct qkn_cascade_shape *shape)
{
    if (shape->frames < 1 || shape->frames > QKN_CASCADE_FRAMES || shape->passes < 1 ||
        shape->passes > QKN_CASCADE_PASSES || shape->frame_log2 < QKN_CASCADE_MIN_LOG2 ||
        shape->frame_log2 > QKN_CASCADE_MAX_LOG2)
        return 0;
    for (unsigned p = 0; p < shape->passes; p++)
        if (shape->exponents[p] < 1 || shape->exponents[p] > shape->frame_log2)
            return 0;
    return 1;
}

/* Give every array of cascade its place; with a NULL base only the size counts. */
static size_t lay_out(struct qkn_cascade *cascade, const struct qkn_cascade_shape *shape, unsigned char *base)
{
    struct arena arena = {base, 0};
    const size_t frames = shape->frames, bits = (size_t)1 << shape->frame_log2, words = bits / 64;
    size_t most_blocks = QKN_CASCADE_MASKS;

    carve(&arena, 1, sizeof *cascade);
    for (unsigned p = 0; p < shape->passes; p++) {
        struct pass *pass = &cascade->passes[p];
        pass->exponent = shape->exponents[p];
        pass->blocks = (unsigned)(bits >> pass->exponent);
        pass->odd_words = (pass->blocks + 63) / 64;
        pass->order = carve(&arena, bits, sizeof *pass->order);
        pass->place = carve(&arena, bits, sizeof *pass->place);
        pass->odd = carve(&arena, frames * pass->odd_words, sizeof *pass->odd);
        if (most_blocks < pass->blocks)
            most_blocks = pass->blocks;
    }
    for (unsigned f = 0; f < frames; f++)
        cascade->frames[f].asked = carve(&arena, most_blocks, sizeof(uint16_t));
    const size_t message_words = (frames * most_blocks + 63) / 64;
    cascade->message = carve(&arena, message_words, sizeof(uint64_t));
    cascade->difference = carve(&arena, message_words, sizeof(uint64_t));
    cascade->key = carve(&arena, frames * words, sizeof(uint64_t));
    cascade->errors = carve(&arena, frames * words, sizeof(uint64_t));
    cascade->nodes = carve(&arena, frames * shape->passes * words, sizeof(struct node));
    cascade->masks = carve(&arena, bits, sizeof(uint32_t));
    cascade->slices = carve(&arena, bits, sizeof(uint64_t));
    cascade->folded = carve(&arena, bits, sizeof(uint64_t));
    return arena.used;
}

static struct node *nodes_of(const struct qkn_cascade *cascade, unsigned f, unsigned p)
{
    return cascade->nodes + ((size_t)f * cascade->shape.passes + p) * cascade->words;
}

static uint64_t *odd_of(const struct pass *pass, unsigned f)
{
    return pass->odd + (size_t)f * pass->odd_words;
}

static void put(struct qkn_cascade *cascade, uint64_t bit)
{
    const size_t at = cascade->message_bits++;
    if (at % 64 == 0)
        cascade->message[at / 64] = bit;
    else
        cascade->message[at / 64] |= bit << at % 64;
}

static uint64_t take(struct qkn_cascade *cascade)
{
    const size_t at = cascade->difference_at++;
    return cascade->difference[at / 64] >> at % 64 & 1;
}

static uint64_t bit_at(const uint64_t *words, size_t i)
{
    return words[i / 64] >> i % 64 & 1;
}

/* The nodes above position y inside one word, for blocks of 2^exponent: those whose left half holds y. */
static uint64_t path_within_word(unsigned y, unsigned exponent)
{
    uint64_t path = 0;
    for (unsigned half = 1; half < 64 && half < 1u << exponent; half <<= 1)
        if (!(y & half))
            path |= (uint64_t)1 << ((y & ~(half - 1)) | half);
    return path;
}

/* Take the error at place y of pass p out of Frame f, in every pass. */
static int remove_error(struct qkn_cascade *cascade, unsigned f, unsigned p, unsigned y)
{
    struct frame *frame = &cascade->frames[f];
    const unsigned i = cascade->passes[p].order[y];
    uint64_t *errors = cascade->errors + (size_t)f * cascade->words;
    if (bit_at(errors, i))
        return QKN_CASCADE_CONTRADICTION;
    errors[i / 64] |= (uint64_t)1 << i % 64;
    frame->errors++;
    frame->removed_masks ^= cascade->masks[i];
    for (unsigned q = 0; q < cascade->shape.passes; q++) {
        const struct pass *pass = &cascade->passes[q];
        struct node *nodes = nodes_of(cascade, f, q);
        const unsigned at = pass->place[i], block = at >> pass->exponent;
        odd_of(pass, f)[block / 64] ^= (uint64_t)1 << block % 64;
        nodes[at / 64].difference ^= pass->path[at % 64];
        for (unsigned half = 64; half < 1u << pass->exponent; half <<= 1)
            if (!(at & half))
                nodes[((at & ~(half - 1)) | half) / 64].difference ^= 1;
    }
    return QKN_CASCADE_GOES_ON;
}

/* Go down from the node with middle x while the way is known, to ask at the first node that is not known, or to remove
 * the error. */
static int descend(struct qkn_cascade *cascade, unsigned f, unsigned p, unsigned x)
{
    struct frame *frame = &cascade->frames[f];
    const struct node *nodes = nodes_of(cascade, f, p);
    unsigned half = x & -x;
    for (;;) {
        const struct node *node = &nodes[x / 64];
        if (!(node->known >> x % 64 & 1)) {
            put(cascade, node->own >> x % 64 & 1);
            frame->asked[frame->asked_count++] = (uint16_t)x;
            return QKN_CASCADE_GOES_ON;
        }
        const unsigned is_left = node->difference >> x % 64 & 1;
        half >>= 1;
        if (half == 0)
            return remove_error(cascade, f, p, x - is_left);
        x = is_left ? x - half : x + half;
    }
}

/* Every odd block asks once: two neighbours are told apart only when one of them is the error, which is then removed, so
 * a way that is known to its end leads to an error removed before, a contradiction. */
static int search_odd_blocks(struct qkn_cascade *cascade, unsigned f, unsigned p)
{
    const struct pass *pass = &cascade->passes[p];
    const uint64_t *odd = odd_of(pass, f);
    for (unsigned w = 0; w < pass->odd_words; w++)
        for (uint64_t left = odd[w]; left; left &= left - 1) {
            const unsigned block = 64 * w + (unsigned)__builtin_ctzll(left);
            const int status = descend(cascade, f, p, (2 * block + 1) << (pass->exponent - 1));
            if (status)
                return status;
        }
    return QKN_CASCADE_GOES_ON;
}

static int has_odd_block(const struct pass *pass, unsigned f)
{
    const uint64_t *odd = odd_of(pass, f);
    uint64_t any = 0;
    for (unsigned w = 0; w < pass->odd_words; w++)
        any |= odd[w];
    return any != 0;
}

/* Blocks of a pass whose parity is asked: from the second on the last one follows from the whole Frame's. */
static unsigned asked_blocks(const struct qkn_cascade *cascade, unsigned p)
{
    return cascade->passes[p].blocks - (p > 0);
}

static void ask_blocks(struct qkn_cascade *cascade, unsigned f, unsigned p)
{
    const struct node *nodes = nodes_of(cascade, f, p);
    const unsigned count = asked_blocks(cascade, p), exponent = cascade->passes[p].exponent;
    for (unsigned block = 0; block < count; block++) {
        const unsigned x = block << exponent;
        put(cascade, nodes[x / 64].own >> x % 64 & 1);
    }
}

static void take_blocks(struct qkn_cascade *cascade, unsigned f, unsigned p)
{
    const struct pass *pass = &cascade->passes[p];
    const unsigned count = asked_blocks(cascade, p);
    uint64_t *odd = odd_of(pass, f), all = 0;
    for (unsigned block = 0; block < count; block++)
        odd[block / 64] ^= take(cascade) << block % 64;
    if (p == 0)
        return;
    const unsigned last = pass->blocks - 1;
    odd[last / 64] &= ~((uint64_t)1 << last % 64);
    for (unsigned w = 0; w < pass->odd_words; w++)
        all ^= odd[w];
    odd[last / 64] |= (uint64_t)__builtin_parityll(all) << last % 64;
}

/* With nothing asked in Frame f: start on its lowest pass with odd blocks, else open the next pass, else it is EVEN. */
static int resume(struct qkn_cascade *cascade, unsigned f)
{
    struct frame *frame = &cascade->frames[f];
    for (unsigned p = 0; p < frame->opened; p++)
        if (has_odd_block(&cascade->passes[p], f)) {
            frame->pass = (uint8_t)p;
            frame->phase = SEARCHING;
            return search_odd_blocks(cascade, f, p);
        }
    while (frame->opened < cascade->shape.passes) {
        ask_blocks(cascade, f, frame->opened);
        frame->phase = OPENING;
        if (asked_blocks(cascade, frame->opened))
            return QKN_CASCADE_GOES_ON;
        take_blocks(cascade, f, frame->opened++);
    }
    frame->phase = EVEN;
    return QKN_CASCADE_GOES_ON;
}

static int take_nodes(struct qkn_cascade *cascade, unsigned f)
{
    struct frame *frame = &cascade->frames[f];
    const unsigned p = frame->pass, count = frame->asked_count;
    struct node *nodes = nodes_of(cascade, f, p);
    frame->asked_count = 0; /* descend asks at most once for each answer, so it never overtakes the reading */
    for (unsigned i = 0; i < count; i++) {
        const unsigned x = frame->asked[i];
        nodes[x / 64].known |= (uint64_t)1 << x % 64;
        nodes[x / 64].difference ^= take(cascade) << x % 64;
        const int status = descend(cascade, f, p, x);
        if (status)
            return status;
    }
    return QKN_CASCADE_GOES_ON;
}

static int advance_frame(struct qkn_cascade *cascade, unsigned f)
{
    struct frame *frame = &cascade->frames[f];
    if (frame->phase == EVEN)
        return QKN_CASCADE_GOES_ON;
    if (frame->phase == OPENING) {
        take_blocks(cascade, f, frame->opened++);
    } else {
        const int status = take_nodes(cascade, f);
        if (status || frame->asked_count)
            return status;
    }
    return resume(cascade, f);
}

/* Frame f's bits of values in the order of the Block's masks: each Frame numbers the masks in its own way, for under
 * one numbering equal residues in two Frames would cancel in every mask. */
static uint32_t in_mask_order(const struct frame *frame, uint32_t values)
{
    uint32_t ordered = 0;
    for (unsigned m = 0; m < QKN_CASCADE_MASKS; m++)
        ordered |= (values >> frame->mask_order[m] & 1) << m;
    return ordered;
}

static uint32_t failing_masks(const struct qkn_cascade *cascade)
{
    uint32_t failing = cascade->mask_difference;
    for (unsigned f = 0; f < cascade->shape.frames; f++)
        failing ^= in_mask_order(&cascade->frames[f], cascade->frames[f].removed_masks);
    return failing;
}

static void ask_masks(struct qkn_cascade *cascade)
{
    uint32_t own = 0;
    for (unsigned f = 0; f < cascade->shape.frames; f++)
        own ^= in_mask_order(&cascade->frames[f], cascade->frames[f].own_masks);
    for (unsigned m = 0; m < QKN_CASCADE_MASKS; m++)
        put(cascade, own >> m & 1);
    cascade->stage = MASKING;
}

static uint64_t masked_parity(const struct qkn_cascade *cascade, const uint64_t *words, unsigned from, unsigned to)
{
    uint64_t parity = 0;
    for (unsigned i = from; i < to; i++)
        parity ^= bit_at(words, i) & cascade->masks[i] >> cascade->located_mask;
    return parity & 1;
}

/* Parities of our key and of the removed errors in the lower half of what is left of the failing mask. */
static uint64_t own_half(const struct qkn_cascade *cascade, uint64_t *removed)
{
    const unsigned middle = (cascade->low + cascade->high) / 2;
    if (cascade->stage == LOCATING_POSITION) {
        const size_t start = (size_t)cascade->located_frame * cascade->words;
        *removed = masked_parity(cascade, cascade->errors + start, cascade->low, middle);
        return masked_parity(cascade, cascade->key + start, cascade->low, middle);
    }
    uint32_t own = 0, errors = 0;
    for (unsigned f = cascade->low; f < middle; f++) {
        const struct frame *frame = &cascade->frames[f];
        const unsigned mask = frame->mask_order[cascade->located_mask];
        own ^= frame->own_masks >> mask;
        errors ^= frame->removed_masks >> mask;
    }
    *removed = errors & 1;
    return own & 1;
}

/* Ask for the lower half of the failing mask, or go on to the next interval when one Frame is left. */
static void ask_half(struct qkn_cascade *cascade)
{
    uint64_t removed;
    if (cascade->stage == LOCATING_FRAME && cascade->high - cascade->low == 1) {
        cascade->stage = LOCATING_POSITION;
        cascade->located_frame = cascade->low;
        cascade->located_mask = cascade->frames[cascade->low].mask_order[cascade->located_mask];
        cascade->low = 0;
        cascade->high = cascade->bits;
    }
    put(cascade, own_half(cascade, &removed));
}

/* With all Frames EVEN: ask the masks once, bisect the first that fails, or finish. */
static int confirm(struct qkn_cascade *cascade)
{
    if (!cascade->masks_known) {
        ask_masks(cascade);
        return QKN_CASCADE_GOES_ON;
    }
    const uint32_t failing = failing_masks(cascade);
    if (failing == 0)
        return QKN_CASCADE_FINISHED;
    cascade->stage = LOCATING_FRAME;
    cascade->located_mask = (unsigned)__builtin_ctz(failing);
    cascade->low = 0;
    cascade->high = cascade->shape.frames;
    ask_half(cascade);
    return QKN_CASCADE_GOES_ON;
}

static int take_half(struct qkn_cascade *cascade)
{
    uint64_t removed;
    const unsigned middle = (cascade->low + cascade->high) / 2;
    own_half(cascade, &removed);
    if (take(cascade) ^ removed)
        cascade->high = middle;
    else
        cascade->low = middle;
    if (cascade->stage == LOCATING_FRAME || cascade->high - cascade->low > 1) {
        ask_half(cascade);
        return QKN_CASCADE_GOES_ON;
    }
    const unsigned f = cascade->located_frame;
    const int status = remove_error(cascade, f, 0, cascade->passes[0].place[cascade->low]);
    if (status)
        return status;
    cascade->stage = CASCADING;
    return resume(cascade, f);
}

static void take_masks(struct qkn_cascade *cascade)
{
    for (unsigned m = 0; m < QKN_CASCADE_MASKS; m++)
        cascade->mask_difference |= (uint32_t)take(cascade) << m;
    cascade->masks_known = 1;
    cascade->stage = CASCADING;
}

static int take_answers(struct qkn_cascade *cascade)
{
    int status = QKN_CASCADE_GOES_ON;
    switch (cascade->stage) {
    case MASKING:
        take_masks(cascade);
        break;
    case LOCATING_FRAME:
    case LOCATING_POSITION:
        status = take_half(cascade);
        break;
    case CASCADING:
        for (unsigned f = 0; f < cascade->shape.frames && !status; f++)
            status = advance_frame(cascade, f);
    }
    return status;
}

static void count_round(struct qkn_cascade *cascade)
{
    cascade->rounds++;
    cascade->parities += cascade->message_bits;
}

int qkn_cascade_advance(struct qkn_cascade *cascade, const uint8_t *received, size_t bytes)
{
    const size_t sent_bits = cascade->message_bits;
    if (bytes != (sent_bits + 7) / 8)
        return QKN_CASCADE_LENGTH;
    if (sent_bits % 8 && received[bytes - 1] >> sent_bits % 8)
        return QKN_CASCADE_PADDING;
    memcpy(cascade->difference, received, bytes);
    for (size_t w = 0; w < (sent_bits + 63) / 64; w++)
        cascade->difference[w] ^= cascade->message[w];
    cascade->difference_at = 0;
    cascade->message_bits = 0;

    int status = take_answers(cascade);
    if (!status && cascade->message_bits == 0)
        status = confirm(cascade);
    if (status)
        return status;
    count_round(cascade);
    return cascade->rounds > QKN_CASCADE_ROUNDS ? QKN_CASCADE_TOO_LONG : QKN_CASCADE_GOES_ON;
}

static void shuffle(uint16_t *order, unsigned count, struct qkn_draws *draws)
{
    for (unsigned i = count - 1; i > 0; i--) {
        const unsigned j = qkn_draws_below(draws, i + 1);
        const uint16_t moved = order[i];
        order[i] = order[j];
        order[j] = moved;
    }
}

static void draw_public_choices(struct qkn_cascade *cascade, const uint8_t seed[32])
{
    struct qkn_draws draws;
    for (unsigned p = 0; p < cascade->shape.passes; p++) {
        struct pass *pass = &cascade->passes[p];
        for (unsigned i = 0; i < cascade->bits; i++)
            pass->order[i] = (uint16_t)i;
        if (p > 0) {
            qkn_draws_open(&draws, seed, TOPIC_PERMUTATION, p);
            shuffle(pass->order, cascade->bits, &draws);
        }
        for (unsigned y = 0; y < cascade->bits; y++)
            pass->place[pass->order[y]] = (uint16_t)y;
        for (unsigned y = 0; y < 64; y++)
            pass->path[y] = path_within_word(y, pass->exponent);
    }
    qkn_draws_open(&draws, seed, TOPIC_MASKS, 0);
    for (unsigned i = 0; i < cascade->bits; i++)
        cascade->masks[i] = qkn_draws_word(&draws);
    qkn_draws_open(&draws, seed, TOPIC_MASK_ORDER, 0);
    for (unsigned f = 0; f < cascade->shape.frames; f++) {
        uint16_t order[QKN_CASCADE_MASKS];
        for (unsigned m = 0; m < QKN_CASCADE_MASKS; m++)
            order[m] = (uint16_t)m;
        shuffle(order, QKN_CASCADE_MASKS, &draws);
        for (unsigned m = 0; m < QKN_CASCADE_MASKS; m++)
            cascade->frames[f].mask_order[m] = (uint8_t)order[m];
    }
}

static void slice_key(struct qkn_cascade *cascade)
{
    for (unsigned w = 0; w < cascade->words; w++) {
        uint64_t *tile = cascade->slices + 64 * (size_t)w;
        for (unsigned f = 0; f < cascade->shape.frames; f++)
            tile[f] = cascade->key[(size_t)f * cascade->words + w];
        qkn_slices_transpose(tile);
    }
}

static void fold_pass(struct qkn_cascade *cascade, unsigned p)
{
    const struct pass *pass = &cascade->passes[p];
    for (unsigned y = 0; y < cascade->bits; y++)
        cascade->folded[y] = cascade->slices[pass->order[y]];
    qkn_slices_fold(cascade->folded, cascade->bits, pass->exponent);
    for (unsigned w = 0; w < cascade->words; w++) {
        uint64_t *tile = cascade->folded + 64 * (size_t)w;
        qkn_slices_transpose(tile);
        for (unsigned f = 0; f < cascade->shape.frames; f++)
            nodes_of(cascade, f, p)[w].own = tile[f];
    }
}

/* Parity of our key under each mask: positions are first added up by each byte of their masks (four tables of 256 in
 * place of 32 sums for every position). */
static void fold_masks(struct qkn_cascade *cascade)
{
    uint64_t *tables = cascade->folded;
    _Static_assert(1 << QKN_CASCADE_MIN_LOG2 >= 4 * 256, "the tables fit where a pass is folded");
    memset(tables, 0, 4 * 256 * sizeof *tables);
    for (unsigned i = 0; i < cascade->bits; i++)
        for (unsigned byte = 0; byte < 4; byte++)
            tables[256 * byte + (cascade->masks[i] >> 8 * byte & 255)] ^= cascade->slices[i];
    for (unsigned m = 0; m < QKN_CASCADE_MASKS; m++) {
        uint64_t sum = 0;
        for (unsigned value = 0; value < 256; value++)
            sum ^= tables[256 * (m / 8) + value] & -(uint64_t)(value >> m % 8 & 1);
        for (unsigned f = 0; f < cascade->shape.frames; f++)
            cascade->frames[f].own_masks |= (uint32_t)(sum >> f & 1) << m;
    }
}

size_t qkn_cascade_bytes(const struct qkn_cascade_shape *shape)
{
    struct qkn_cascade measured;
    return is_allowed(shape) ? lay_out(&measured, shape, NULL) : 0;
}

int qkn_cascade_open(void *memory, size_t bytes, const struct qkn_cascade_shape *shape, const uint8_t seed[32],
                     const uint8_t *key, size_t key_bytes)
{
    const size_t needed = qkn_cascade_bytes(shape);
    if (needed == 0 || bytes < needed || key_bytes != ((size_t)shape->frames << shape->frame_log2) / 8)
        return QKN_CASCADE_SHAPE;
    struct qkn_cascade *cascade = memory;
    cascade->shape = *shape;
    cascade->bits = 1u << shape->frame_log2;
    cascade->words = cascade->bits / 64;
    lay_out(cascade, shape, memory);
    memcpy(cascade->key, key, key_bytes);
    draw_public_choices(cascade, seed);
    slice_key(cascade);
    fold_masks(cascade);
    for (unsigned p = 0; p < shape->passes; p++)
        fold_pass(cascade, p);
    for (unsigned f = 0; f < shape->frames; f++) {
        cascade->frames[f].phase = OPENING;
        ask_blocks(cascade, f, 0);
    }
    count_round(cascade);
    return QKN_CASCADE_GOES_ON;
}

const uint8_t *qkn_cascade_message(const struct qkn_cascade *cascade, size_t *bytes)
{
    *bytes = (cascade->message_bits + 7) / 8;
    return (const uint8_t *)cascade->message;
}

uint64_t qkn_cascade_parities(const struct qkn_cascade *cascade)
{
    return cascade->parities;
}

unsigned qkn_cascade_rounds(const struct qkn_cascade *cascade)
{
    return cascade->rounds;
}

uint32_t qkn_cascade_frame_errors(const struct qkn_cascade *cascade, unsigned frame)
{
    return cascade->frames[frame].errors;
}

void qkn_cascade_key(const struct qkn_cascade *cascade, int correct, uint8_t *out)
{
    const uint64_t flip = -(uint64_t)(correct != 0);
    for (size_t w = 0; w < (size_t)cascade->shape.frames * cascade->words; w++) {
        const uint64_t word = cascade->key[w] ^ (cascade->errors[w] & flip);
        memcpy(out + 8 * w, &word, sizeof word);
    }
}

void qkn_cascade_error_mask(const struct qkn_cascade *cascade, uint8_t *out)
{
    memcpy(out, cascade->errors, (size_t)cascade->shape.frames * cascade->words * sizeof *cascade->errors);
}
