#include "personalities/personalities.h"

static void resume(struct qmp_device *device)
{
    (void)device;
}

/* The sync pulse of a slot goes out before the packet that holds the slot. */
static int packet(struct qmp_device *device, uint64_t ready, int drain, uint8_t *out)
{
    uint64_t end = device->cursor + QMP_SLOTS_PER_PACKET;
    (void)drain;
    if (end > ready)
        return 0;
    if (device->next_sync * device->settings.sync_interval_slots < end) {
        qmp_stream_sync(device, out);
        return 1;
    }
    device->source->choices(device->source->context, device->cursor, qmp_record(out, 0));
    qmp_stream_seal(device, out, QMP_TX_CHOICES, QMP_RECORDS, device->cursor);
    device->cursor = end;
    return 1;
}

const struct qmp_personality qmp_qkd_tx = {1, "emulated QKD-Tx", QMP_SLOTS_PER_PACKET, resume, packet, 0};
