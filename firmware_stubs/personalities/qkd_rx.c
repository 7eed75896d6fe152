#include "core/bytes.h"
#include "personalities/personalities.h"

#define TIME_BITS 54
#define TIME_MASK ((UINT64_C(1) << TIME_BITS) - 1)

static void resume(struct qmp_device *device)
{
    device->held_count = 0;
}

static int flush(struct qmp_device *device, uint8_t *out)
{
    uint64_t before = device->held[0].time;
    for (uint32_t i = 0; i < device->held_count; i++) {
        uint64_t time = device->held[i].time;
        uint64_t rollover = before >> TIME_BITS != time >> TIME_BITS;
        qmp_put64(qmp_record(out, i), (time & TIME_MASK) << 10 | rollover << 4 | device->held[i].pattern);
        before = time;
    }
    qmp_stream_seal(device, out, QMP_TIME_TAGS, (uint16_t)device->held_count, device->held[0].time);
    device->held_count = 0;
    return 1;
}

/* Tags go out in full packets, and in a short one before each sync pulse: behind the pulse's packet nothing earlier
 * than the pulse follows. */
static int packet(struct qmp_device *device, uint64_t ready, int drain, uint8_t *out)
{
    const struct qmp_source *source = device->source;
    for (;;) {
        uint64_t pulse = device->next_sync * device->settings.sync_interval_slots;
        if (device->held_count == QMP_RECORDS)
            return flush(device, out);
        if (device->cursor == pulse && device->held_count)
            return flush(device, out);
        if (device->cursor == pulse && pulse <= ready) {
            qmp_stream_sync(device, out);
            return 1;
        }
        if (device->cursor >= ready)
            return drain && device->held_count ? flush(device, out) : 0;
        device->held_count += source->tags(source->context, device->cursor, pulse < ready ? pulse : ready,
                                           QMP_RECORDS - device->held_count, device->held + device->held_count,
                                           &device->cursor);
    }
}

const struct qmp_personality qmp_qkd_rx = {2, "emulated QKD-Rx", 1, resume, packet, 0};
