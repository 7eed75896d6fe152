#include <string.h>

#include "optics/optics.h"
#include "optics/philox.h"

/* Bob's detectors, slot by slot. A slot's draws have their own addresses, so any slot can be computed alone but for dead
 * time, which remembers: all detectors are alive again at every sync pulse, so that a receiver started late is in the same
 * state as one that ran all along. Rules:
 * - A pulse of mean photon number mu is detected with probability 1 - exp(-eta mu), as one click in the basis Bob chose.
 * - In the basis of the photon (Alice's or, resent, Eve's) it takes the detector of its bit, or the other with the
 *   misalignment probability; in another basis either with 1/2.
 * - Each of the four detectors has a dark count with the same probability, in every slot.
 * - A click of detector d in slot s suppresses d up to slot s + dead_slots. A suppressed click does not prolong this.
 * - Eve's resent pulse is detected exactly when Alice's would have been: the click rate does not betray her.
 *
 * One uniform byte per slot is the top of a 40-bit uniform: slots whose byte exceeds what any click limit allows are done.
 * The others, the candidates, draw the rest. */

static uint64_t greatest_limit(const struct qkn_optics *optics)
{
    uint64_t greatest = 0;
    for (int k = 0; k < QKN_INTENSITIES; k++)
        if (optics->click_limits[k] > greatest)
            greatest = optics->click_limits[k];
    return greatest;
}

/* Offsets of the slots that may click. */
static uint32_t select_candidates(const uint8_t *uniform, uint64_t greatest, uint16_t *out)
{
    const uint32_t bound = (uint32_t)((greatest + UINT32_MAX) >> 32);
    uint32_t count = 0;
    for (uint32_t i = 0; i < QKN_RX_CHUNK; i++) {
        out[count] = (uint16_t)i;
        count += uniform[i] < bound;
    }
    return count;
}

static unsigned pick(const uint64_t *cumulative, uint32_t uniform)
{
    unsigned pattern = 0;
    while (pattern < QKN_PATTERNS - 1 && uniform >= cumulative[pattern])
        pattern++;
    return pattern;
}

/* Light and dark clicks of candidate i, dead time apart. */
static inline unsigned clicks(const struct qkn_receiver *rx, const struct qkn_optics *optics, uint32_t i,
                              unsigned choice, uint64_t uniform, int eavesdropped)
{
    const unsigned intensity = choice >> 2;
    const uint32_t random_bit = rx->detection[3][i] & 1;
    const uint32_t misaligned = rx->detection[3][i] >> 1 < optics->misaligned_limit;
    const uint32_t measured = rx->detection[2][i] >= optics->receiver_z_limit;
    uint32_t basis = choice & 1, bit = choice >> 1 & 1;
    if (eavesdropped && rx->eavesdrop[0][i] < optics->intercept_limit) {
        uint32_t eve = rx->eavesdrop[1][i] >= optics->eavesdropper_z_limit;
        bit = eve == basis ? bit : rx->eavesdrop[2][i] & 1;
        basis = eve;
    }
    const uint32_t seen = measured == basis ? bit ^ misaligned : random_bit;
    const int lit = uniform < optics->signal_limits[intensity];
    const int any = uniform < optics->click_limits[intensity];
    unsigned pattern = lit ? 1u << (2 * measured + seen) : 0;
    if (any > lit)
        return pick(optics->dark_only_limits, rx->detection[1][i]);
    if (lit && rx->detection[1][i] >= optics->dark_limits[0])
        pattern |= pick(optics->dark_limits, rx->detection[1][i]);
    return pattern;
}

static unsigned survivors(struct qkn_receiver *rx, uint64_t slot, unsigned pattern)
{
    unsigned alive = 0;
    for (unsigned d = 0; d < QKN_DETECTORS; d++)
        if (pattern >> d & 1 && slot >= rx->alive_from[d]) {
            alive |= 1u << d;
            rx->alive_from[d] = slot + rx->optics->dead_slots + 1;
        }
    return alive;
}

static void detect(struct qkn_receiver *rx, uint64_t chunk)
{
    const struct qkn_optics *optics = rx->optics;
    const struct qkn_optics_kernel *kernel = rx->kernel;
    const uint64_t base = chunk * QKN_RX_CHUNK;
    const int eavesdropped = optics->intercept_limit != 0;
    const uint8_t *uniform = (const uint8_t *)rx->uniforms;

    kernel->choices(optics->seed, chunk * (QKN_RX_CHUNK / QKN_CHOICE_GROUP), QKN_RX_CHUNK / QKN_CHOICE_GROUP,
                    optics->choice_limits, rx->choices);
    kernel->words(optics->seed, QKN_STREAM_CANDIDATES, chunk * (QKN_RX_CHUNK / 4 / QKN_WORD_GROUP),
                  QKN_RX_CHUNK / 4 / QKN_WORD_GROUP, rx->uniforms);
    uint32_t count = select_candidates(uniform, greatest_limit(optics), rx->candidates);
    kernel->blocks(optics->seed, QKN_STREAM_DETECTION, base, rx->candidates, count, QKN_RX_CHUNK, rx->detection[0]);
    if (eavesdropped)
        kernel->blocks(optics->seed, QKN_STREAM_EAVESDROP, base, rx->candidates, count, QKN_RX_CHUNK,
                       rx->eavesdrop[0]);

    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t offset = rx->candidates[i];
        const unsigned choice = rx->choices[offset / 2] >> (offset % 2 * 4) & 15;
        const uint64_t draw = (uint64_t)uniform[offset] << 32 | rx->detection[0][i];
        rx->slots[found] = (uint16_t)offset;
        rx->patterns[found] = (uint8_t)clicks(rx, optics, i, choice, draw, eavesdropped);
        found += rx->patterns[found] != 0;
    }

    rx->count = 0;
    rx->at = 0;
    for (uint32_t i = 0; i < found; i++) {
        const uint64_t slot = base + rx->slots[i];
        if (slot >= rx->interval_end) {
            memset(rx->alive_from, 0, sizeof rx->alive_from);
            rx->interval_end = (slot / optics->sync_interval_slots + 1) * optics->sync_interval_slots;
        }
        rx->slots[rx->count] = rx->slots[i];
        rx->patterns[rx->count] = (uint8_t)survivors(rx, slot, rx->patterns[i]);
        rx->count += rx->patterns[rx->count] != 0;
    }
    rx->chunk = chunk + 1;
}

/* Bring the detectors to where they are at `chunk`. */
static void seek(struct qkn_receiver *rx, uint64_t chunk)
{
    const uint64_t interval = rx->optics->sync_interval_slots;
    uint64_t from = rx->chunk;
    if (rx->chunk != chunk) {
        from = chunk * QKN_RX_CHUNK / interval * interval / QKN_RX_CHUNK;
        rx->interval_end = 0;
    }
    while (from <= chunk)
        detect(rx, from++);
}

uint32_t qkn_receiver_tags(void *context, uint64_t from, uint64_t to, uint32_t room, struct qmp_tag *out,
                           uint64_t *reached)
{
    struct qkn_receiver *rx = context;
    const uint64_t units = rx->optics->slot_units;
    uint32_t count = 0;
    for (uint64_t at = from; at < to;) {
        const uint64_t chunk = at / QKN_RX_CHUNK, base = chunk * QKN_RX_CHUNK;
        const uint64_t end = to - base < QKN_RX_CHUNK ? to - base : QKN_RX_CHUNK;
        if (rx->chunk != chunk + 1)
            seek(rx, chunk);
        if (rx->at > 0 && base + rx->slots[rx->at - 1] >= at)
            rx->at = 0;
        while (rx->at < rx->count && base + rx->slots[rx->at] < at)
            rx->at++;
        for (; rx->at < rx->count && rx->slots[rx->at] < end; rx->at++) {
            const uint64_t slot = base + rx->slots[rx->at];
            if (count == room) {
                *reached = slot;
                return count;
            }
            out[count++] = (struct qmp_tag){slot * units + units / 2 + rx->optics->clock_offset,
                                            rx->patterns[rx->at]};
        }
        at = base + end;
    }
    *reached = to;
    return count;
}
