/* Sifting and bit packing. */
#include "sifting.h"

#include <string.h>

static inline unsigned get_bit(const uint8_t *bits, size_t i)
{
    return (bits[i >> 3] >> (i & 7)) & 1u;
}

static inline void put_bit(uint8_t *bits, size_t i, unsigned value)
{
    bits[i >> 3] |= (uint8_t)(value << (i & 7));
}

static inline unsigned get_pair(const uint8_t *pairs, size_t i)
{
    return (pairs[i >> 2] >> (2 * (i & 3))) & 3u;
}

static inline void put_pair(uint8_t *pairs, size_t i, unsigned value)
{
    pairs[i >> 2] |= (uint8_t)(value << (2 * (i & 3)));
}

static inline int padding_is_zero(const uint8_t *bits, size_t count)
{
    return (count & 7) == 0 || bits[count >> 3] >> (count & 7) == 0;
}

static inline size_t put_distance(uint8_t *out, uint32_t distance)
{
    size_t n = 0;
    while (distance >= 0x80) {
        out[n++] = (uint8_t)(distance | 0x80);
        distance >>= 7;
    }
    out[n++] = (uint8_t)distance;
    return n;
}

/* 0 if the list ends inside the distance or the distance does not fit 32 bits */
static inline size_t get_distance(const uint8_t *in, size_t available, uint32_t *distance)
{
    uint64_t value = 0;
    for (size_t n = 0; n < available && n < 5; n++) {
        value |= (uint64_t)(in[n] & 0x7f) << (7 * n);
        if (!(in[n] & 0x80)) {
            *distance = (uint32_t)value;
            return value >> 32 ? 0 : n + 1;
        }
    }
    return 0;
}

int qkn_sift_list(const uint32_t *slots, const uint8_t *patterns, size_t n, uint32_t dead_slots, const uint8_t *coins,
                  size_t coin_bits, uint8_t *slot_list, uint8_t *bases, uint8_t *bits, struct qkn_sift_listing *out)
{
    struct qkn_sift_listing result = {0};
    uint32_t next_listed = 0;    /* slot after the last listed one */
    uint64_t live_from = dead_slots; /* what clicked before the Window is unknown: its first slots count as dead */
    for (size_t i = 0; i < n; i++) {
        uint32_t slot = slots[i];
        if (i > 0 && slot <= slots[i - 1])
            return QKN_SIFT_ORDER;
        int dead = slot < live_from;
        live_from = (uint64_t)slot + dead_slots + 1;
        if (dead) {
            result.dead_clicks++;
            continue;
        }
        unsigned z = patterns[i] & 3u, x = (patterns[i] >> 2) & 3u;
        if ((z != 0) == (x != 0)) {
            result.crossed_clicks++;
            continue;
        }
        unsigned pair = z | x, bit = pair >> 1;
        if (pair == 3) {
            if (result.double_clicks >= coin_bits)
                return QKN_SIFT_COINS;
            bit = get_bit(coins, result.double_clicks++);
        } else {
            result.single_clicks[x != 0]++;
            result.single_ones[x != 0] += bit;
        }
        result.slot_bytes += put_distance(slot_list + result.slot_bytes, slot - next_listed);
        next_listed = slot + 1;
        put_bit(bases, result.events, x != 0);
        put_bit(bits, result.events, bit);
        result.events++;
    }
    *out = result;
    return QKN_SIFT_OK;
}

int qkn_sift_answer(const uint8_t *slot_list, size_t slot_bytes, const uint8_t *bases, size_t events,
                    const uint8_t *choices, uint32_t window_slots, unsigned intensity_count, uint8_t *matched,
                    uint8_t *intensities, uint8_t *x_bits, uint8_t *z_bits, uint8_t *z_intensities,
                    struct qkn_sift_answer *out)
{
    struct qkn_sift_answer result = {0};
    uint64_t slot = 0;
    size_t at = 0;
    if (!padding_is_zero(bases, events))
        return QKN_SIFT_TRAILING;
    for (size_t i = 0; i < events; i++) {
        uint32_t distance;
        size_t used = get_distance(slot_list + at, slot_bytes - at, &distance);
        if (used == 0)
            return QKN_SIFT_TRUNCATED;
        at += used;
        slot += distance;
        if (slot >= window_slots)
            return QKN_SIFT_OUTSIDE;
        unsigned choice = (choices[slot >> 1] >> (4 * (slot & 1))) & 15u;
        slot++;
        unsigned basis = choice & 1u, bit = (choice >> 1) & 1u, intensity = choice >> 2;
        if (basis != get_bit(bases, i))
            continue;
        if (intensity >= intensity_count)
            return QKN_SIFT_INTENSITY;
        put_bit(matched, i, 1);
        put_pair(intensities, result.matched++, intensity);
        if (basis) {
            put_bit(x_bits, result.x++, bit);
            result.n_x[intensity]++;
        } else {
            put_bit(z_bits, result.z, bit);
            put_pair(z_intensities, result.z++, intensity);
            result.ones += bit;
            result.n_z[intensity]++;
        }
    }
    if (at != slot_bytes)
        return QKN_SIFT_TRAILING;
    *out = result;
    return QKN_SIFT_OK;
}

int qkn_sift_count(const uint8_t *bases, const uint8_t *matched, size_t events, size_t *matched_count, size_t *x_count)
{
    size_t all = 0, x = 0;
    if (!padding_is_zero(matched, events))
        return QKN_SIFT_TRAILING;
    for (size_t i = 0; i < (events + 7) / 8; i++) {
        all += (size_t)__builtin_popcount(matched[i]);
        x += (size_t)__builtin_popcount(matched[i] & bases[i]);
    }
    *matched_count = all;
    *x_count = x;
    return QKN_SIFT_OK;
}

int qkn_sift_apply(const uint8_t *bits, const uint8_t *bases, size_t events, const uint8_t *matched,
                   const uint8_t *intensities, const uint8_t *x_bits, unsigned intensity_count, uint8_t *z_bits,
                   uint8_t *z_intensities, struct qkn_sift_outcome *out)
{
    struct qkn_sift_outcome result = {0};
    for (size_t i = 0; i < events; i++) {
        if (!get_bit(matched, i))
            continue;
        unsigned intensity = get_pair(intensities, result.matched++);
        if (intensity >= intensity_count)
            return QKN_SIFT_INTENSITY;
        unsigned bit = get_bit(bits, i);
        if (get_bit(bases, i)) {
            result.m_x[intensity] += bit ^ get_bit(x_bits, result.x++);
            result.n_x[intensity]++;
        } else {
            put_bit(z_bits, result.z, bit);
            put_pair(z_intensities, result.z++, intensity);
            result.ones += bit;
            result.n_z[intensity]++;
        }
    }
    if (!padding_is_zero(intensities, 2 * result.matched) || !padding_is_zero(x_bits, result.x))
        return QKN_SIFT_TRAILING;
    *out = result;
    return QKN_SIFT_OK;
}

/* up to 64 bits from src at src_bit, reading only bytes that hold them */
static inline uint64_t load_bits(const uint8_t *src, size_t src_bit, unsigned count)
{
    uint8_t window[16] = {0};
    size_t first = src_bit >> 3, last = (src_bit + count - 1) >> 3;
    memcpy(window, src + first, last - first + 1);
    uint64_t low = 0;
    for (unsigned i = 0; i < 8; i++)
        low |= (uint64_t)window[i] << (8 * i);
    unsigned shift = (unsigned)(src_bit & 7);
    uint64_t value = low >> shift;
    if (shift)
        value |= (uint64_t)window[8] << (64 - shift);
    return count == 64 ? value : value & ((UINT64_C(1) << count) - 1);
}

void qkn_bits_copy(uint8_t *dst, size_t dst_bit, const uint8_t *src, size_t src_bit, size_t bits)
{
    size_t done = 0;
    while (done < bits && ((dst_bit + done) & 7)) {
        unsigned place = (unsigned)((dst_bit + done) & 7);
        uint8_t *byte = dst + ((dst_bit + done) >> 3);
        *byte = (uint8_t)((*byte & ~(1u << place)) | (get_bit(src, src_bit + done) << place));
        done++;
    }
    if (((src_bit + done) & 7) == 0) {
        size_t whole = (bits - done) >> 3;
        memcpy(dst + ((dst_bit + done) >> 3), src + ((src_bit + done) >> 3), whole);
        done += 8 * whole;
    }
    for (; bits - done >= 64; done += 64) {
        uint64_t value = load_bits(src, src_bit + done, 64);
        uint8_t *out = dst + ((dst_bit + done) >> 3);
        for (unsigned i = 0; i < 8; i++)
            out[i] = (uint8_t)(value >> (8 * i));
    }
    while (done < bits) {
        unsigned count = bits - done < 8 ? (unsigned)(bits - done) : 8;
        uint8_t value = (uint8_t)load_bits(src, src_bit + done, count), keep = (uint8_t)(0xff << count);
        uint8_t *out = dst + ((dst_bit + done) >> 3);
        *out = count == 8 ? value : (uint8_t)((*out & keep) | value);
        done += count;
    }
}

void qkn_bits_count_by_intensity(const uint8_t *mask, const uint8_t *intensities, size_t bits, uint64_t counts[4])
{
    for (size_t i = 0; i < bits; i += 8) {
        unsigned byte = mask[i >> 3];
        if (bits - i < 8)
            byte &= (1u << (bits - i)) - 1;
        for (; byte; byte &= byte - 1)
            counts[get_pair(intensities, i + (size_t)__builtin_ctz(byte))]++;
    }
}
