#include <string.h>

#include "core/bytes.h"
#include "core/device.h"

enum { IN = 0xC0, OUT = 0x40 }; /* vendor request, recipient device */
enum { FIRMWARE_VERSION = 0x000100 };
#if QMP_FAULTS
enum { BLINDING_NA = 150000 };
#endif
enum { FLAG_EMULATED = 1 << 0, FLAG_FAULTS = 1 << 1 };

struct call {
    struct qmp_device *device;
    uint16_t value;
    uint64_t now;
    uint8_t *data;
};

static int info(struct call *call)
{
    const struct qmp_settings *settings = &call->device->settings;
    uint8_t *out = call->data;
    qmp_put16(out, QMP_MAGIC);
    out[2] = QMP_VERSION;
    out[3] = call->device->personality->code;
    qmp_put32(out + 4, FIRMWARE_VERSION);
    qmp_put64(out + 8, settings->slot_rate_hz);
    qmp_put64(out + 16, settings->sync_interval_slots);
    qmp_put32(out + 24, settings->slot_units);
    out[28] = settings->intensities;
    out[29] = (uint8_t)((settings->emulated ? FLAG_EMULATED : 0) | (QMP_FAULTS ? FLAG_FAULTS : 0));
    qmp_put16(out + 30, call->device->session);
    memcpy(out + 32, settings->serial, 16);
    memcpy(out + 48, call->device->personality->model, 16);
    return 0;
}

static int health(struct call *call)
{
    struct qmp_device *device = call->device;
    struct qmp_environment environment;
    uint8_t *out = call->data;
    device->source->environment(device->source->context, &environment);
#if QMP_FAULTS
    if (device->blinded) { /* currents of 0.1 mA and more were needed: Lydersen et al., arXiv:1008.4593 */
        environment.photocurrent_na += BLINDING_NA;
        environment.bias_mv -= environment.bias_mv / 8;
    }
#endif
    qmp_put32(out, device->state);
    qmp_put32(out + 4, device->alarms);
    qmp_put32(out + 8, device->boot_count);
    qmp_put32(out + 12, (uint32_t)environment.temperature_mc);
    qmp_put32(out + 16, (uint32_t)environment.bias_mv);
    qmp_put32(out + 20, (uint32_t)environment.photocurrent_na);
    qmp_put32(out + 24, device->rct_failures);
    qmp_put32(out + 28, device->apt_failures);
    qmp_put64(out + 32, device->packets);
    qmp_put64(out + 40, device->overflows);
    qmp_put64(out + 48, device->missed);
    qmp_put64(out + 56, 0);
    return 0;
}

static int config(struct call *call)
{
    memcpy(call->data, call->device->settings.config, QMP_BLOCK_BYTES);
    return 0;
}

static int stream(struct call *call)
{
    struct qmp_device *device = call->device;
    if (call->value > 1 || device->state == QMP_FAILED)
        return QMP_STALL;
    if (call->value == 1)
        qmp_stream_start(device, call->now);
    else
        qmp_stream_stop(device);
    return 0;
}

/* A failed test stops the stream: the endpoint NAKs until the alarms are acknowledged, and never sends zeros. */
static int self_test(struct call *call)
{
    struct qmp_device *device = call->device;
    if (!device->personality->self_test)
        return QMP_STALL;
    uint32_t alarms = device->personality->self_test(device, call->now);
    device->rct_failures += (alarms & QMP_ALARM_RCT) != 0;
    device->apt_failures += (alarms & QMP_ALARM_APT) != 0;
    if (alarms) {
        qmp_stream_stop(device);
        device->state = QMP_FAILED;
    }
    qmp_device_latch(device, alarms);
    return 0;
}

static int acknowledge(struct call *call)
{
    struct qmp_device *device = call->device;
    device->alarms &= ~(uint32_t)call->value;
    device->unreported &= device->alarms;
    if (device->state == QMP_FAILED && !(device->alarms & (QMP_ALARM_RCT | QMP_ALARM_APT)))
        device->state = QMP_IDLE;
    return 0;
}

static int zeroize(struct call *call)
{
    qmp_device_reset(call->device);
    return 0;
}

/* 0x03 to 0x05 (attestation) and 0x07 (set config) are reserved: not in the table, hence stalled. */
static const struct {
    uint8_t request, type;
    uint16_t length;
    int (*handle)(struct call *call);
} REQUESTS[] = {
    {0x01, IN, QMP_BLOCK_BYTES, info},  {0x02, IN, QMP_BLOCK_BYTES, health}, {0x06, IN, QMP_BLOCK_BYTES, config},
    {0x08, OUT, 0, stream},             {0x09, OUT, 0, self_test},           {0x0A, OUT, 0, acknowledge},
    {0x0B, OUT, 0, zeroize},
};

int qmp_control(struct qmp_device *device, uint8_t type, uint8_t request, uint16_t value, uint16_t index,
                uint8_t *data, uint16_t length, uint64_t now)
{
    struct call call = {device, value, now, data};
    for (unsigned i = 0; i < sizeof REQUESTS / sizeof *REQUESTS; i++)
        if (REQUESTS[i].request == request && REQUESTS[i].type == type && REQUESTS[i].length == length && index == 0)
            return REQUESTS[i].handle(&call) == 0 ? length : QMP_STALL;
    return QMP_STALL;
}
