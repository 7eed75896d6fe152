#include "core/device.h"

#include <stddef.h>
#include <string.h>

#include "core/bytes.h"
#include "core/crc32.h"

void qmp_device_create(struct qmp_device *device, const struct qmp_personality *personality,
                       const struct qmp_source *source, const struct qmp_settings *settings)
{
    memset(device, 0, sizeof *device);
    device->personality = personality;
    device->source = source;
    device->settings = *settings;
    qmp_crc32_prepare();
    qmp_device_boot(device);
}

void qmp_device_boot(struct qmp_device *device)
{
    size_t lost = offsetof(struct qmp_device, state);
    memset((uint8_t *)device + lost, 0, sizeof *device - lost);
    device->boot_count++;
}

void qmp_device_reset(struct qmp_device *device)
{
    uint32_t state = device->state == QMP_FAILED ? QMP_FAILED : QMP_IDLE;
    qmp_stream_stop(device);
    device->state = state;
}

void qmp_device_latch(struct qmp_device *device, uint32_t alarms)
{
    uint32_t fresh = alarms & ~device->alarms;
    device->alarms |= fresh;
    device->unreported |= fresh;
}

int qmp_interrupt(struct qmp_device *device, uint8_t *out)
{
    uint32_t alarm = device->unreported & (0u - device->unreported);
    if (alarm == 0)
        return 0;
    device->unreported &= ~alarm;
    qmp_put32(out, alarm);
    qmp_put32(out + 4, device->alarm_sequence++);
    return QMP_ALARM_BYTES;
}

static uint64_t round_up(uint64_t position, uint32_t granule)
{
    return (position + granule - 1) / granule * granule;
}

/* Take up the stream at `position`; the next sync pulse is the first one not before it. */
static void resume_at(struct qmp_device *device, uint64_t position)
{
    uint64_t interval = device->settings.sync_interval_slots;
    device->cursor = position;
    device->next_sync = interval ? (position + interval - 1) / interval : 0;
    device->personality->resume(device);
}

void qmp_stream_start(struct qmp_device *device, uint64_t position)
{
    qmp_stream_stop(device);
    device->last_session = device->last_session == UINT16_MAX ? 1 : (uint16_t)(device->last_session + 1);
    device->session = device->last_session;
    device->state = QMP_STREAMING;
    resume_at(device, round_up(position, device->personality->granule));
}

void qmp_stream_stop(struct qmp_device *device)
{
    device->state = QMP_IDLE;
    device->session = 0;
    device->sequence = 0;
    device->held_count = 0;
    memset(device->held, 0, sizeof device->held);
    memset(&device->gap, 0, sizeof device->gap);
#if QMP_FAULTS
    memset(&device->fault, 0, sizeof device->fault);
#endif
}

void qmp_stream_seal(struct qmp_device *device, uint8_t *packet, uint8_t type, uint16_t count, uint64_t base)
{
    qmp_packet_seal(packet, type, device->session, count, device->sequence++, base);
    device->packets++;
}

void qmp_stream_sync(struct qmp_device *device, uint8_t *packet)
{
    const struct qmp_settings *settings = &device->settings;
    uint64_t pulse = device->next_sync++;
    qmp_put64(qmp_record(packet, 0),
              pulse * settings->sync_interval_slots * settings->slot_units + settings->clock_offset);
    qmp_stream_seal(device, packet, QMP_SYNC, 1, pulse);
}

/* The buffer keeps its oldest: once full, everything newer is dropped until the host has read it empty. */
static void watch_overflow(struct qmp_device *device, uint64_t now)
{
    uint64_t capacity = device->settings.capacity;
    if (device->gap.open || now <= device->cursor || now - device->cursor <= capacity)
        return;
    device->gap.open = 1;
    device->gap.from = round_up(device->cursor + capacity, device->personality->granule);
    device->gap.length = 0;
    device->overflows++;
    qmp_device_latch(device, QMP_ALARM_OVERFLOW);
}

static void mark_gap(struct qmp_device *device, uint64_t now, uint8_t *out)
{
    const struct qmp_settings *settings = &device->settings;
    struct qmp_gap gap = device->gap;
    uint64_t to = gap.length ? gap.from + gap.length : round_up(now, device->personality->granule);
    uint64_t missed = (to - gap.from) * settings->unit_scale;
    device->gap.open = 0;
    device->missed += missed;
    qmp_put64(qmp_record(out, 0), missed);
    qmp_put64(qmp_record(out, 1), 0);
    qmp_stream_seal(device, out, QMP_GAP, 2, gap.from * settings->unit_scale + settings->unit_shift);
    resume_at(device, to);
}

int qmp_stream_packet(struct qmp_device *device, uint64_t now, uint8_t *out)
{
    if (device->state != QMP_STREAMING)
        return 0;
    watch_overflow(device, now);
    int drain = device->gap.open && device->gap.from <= now;
    if (device->personality->packet(device, drain ? device->gap.from : now, drain, out))
        return 1;
    if (!drain || device->cursor < device->gap.from)
        return 0;
    mark_gap(device, now, out);
    return 1;
}

static int next_packet(struct qmp_device *device, uint64_t now, uint8_t *out, uint32_t *size)
{
#if QMP_FAULTS
    return qmp_fault_packet(device, now, out, size);
#else
    *size = qmp_stream_packet(device, now, out) ? QMP_PACKET_BYTES : 0;
    return QMP_TRANSFER_OPEN;
#endif
}

int qmp_stream_transfer(struct qmp_device *device, uint64_t now, uint32_t size, uint8_t *out, uint32_t *filled)
{
    *filled = 0;
    while (size - *filled >= QMP_PACKET_BYTES) {
        uint32_t bytes;
        int status = next_packet(device, now, out + *filled, &bytes);
        *filled += bytes;
        if (status != QMP_TRANSFER_OPEN || bytes == 0)
            return status;
    }
    return QMP_TRANSFER_OPEN;
}

void qmp_stream_clear_halt(struct qmp_device *device)
{
#if QMP_FAULTS
    device->fault.stalled = 0;
#else
    (void)device;
#endif
}
