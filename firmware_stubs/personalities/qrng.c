#include <string.h>

#include "personalities/personalities.h"

/* The start-up test of NIST SP 800-90B 4.3 on bytes claimed to hold 6 bits of min-entropy, each test with a
 * false-positive probability of 2^-30: 4.4.1 gives a repetition cutoff of 1 + ceil(30 / 6), 4.4.2 the adaptive
 * proportion cutoff for windows of 512. */
enum { SAMPLES = 1024, WINDOW = 512, RCT_CUTOFF = 6, APT_CUTOFF = 31 };

static uint32_t repetition_count(const uint8_t *samples)
{
    unsigned run = 1;
    for (unsigned i = 1; i < SAMPLES; i++) {
        run = samples[i] == samples[i - 1] ? run + 1 : 1;
        if (run >= RCT_CUTOFF)
            return QMP_ALARM_RCT;
    }
    return 0;
}

static uint32_t adaptive_proportion(const uint8_t *samples)
{
    for (unsigned start = 0; start < SAMPLES; start += WINDOW) {
        unsigned count = 0;
        for (unsigned i = start; i < start + WINDOW; i++)
            count += samples[i] == samples[start];
        if (count >= APT_CUTOFF)
            return QMP_ALARM_APT;
    }
    return 0;
}

static uint32_t self_test(struct qmp_device *device, uint64_t position)
{
    uint8_t samples[SAMPLES];
    device->source->bytes(device->source->context, position, SAMPLES, samples);
    uint32_t alarms = repetition_count(samples) | adaptive_proportion(samples);
    memset(samples, 0, sizeof samples);
    return alarms;
}

static void resume(struct qmp_device *device)
{
    (void)device;
}

static int packet(struct qmp_device *device, uint64_t ready, int drain, uint8_t *out)
{
    (void)drain;
    if (device->cursor + QMP_PAYLOAD_BYTES > ready)
        return 0;
    device->source->bytes(device->source->context, device->cursor, QMP_PAYLOAD_BYTES, qmp_record(out, 0));
    qmp_stream_seal(device, out, QMP_RNG_RAW, QMP_RECORDS, device->cursor);
    device->cursor += QMP_PAYLOAD_BYTES;
    return 1;
}

const struct qmp_personality qmp_qrng = {3, "emulated QRNG", QMP_PAYLOAD_BYTES, resume, packet, self_test};
