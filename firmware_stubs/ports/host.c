#include "ports/host.h"

#include <string.h>

#include "personalities/personalities.h"

#define NS_PER_S UINT64_C(1000000000)

static uint64_t position(const struct qkn_host *host, uint64_t now_ns)
{
    uint64_t elapsed = now_ns > host->epoch_ns ? now_ns - host->epoch_ns : 0;
    return elapsed / NS_PER_S * host->rate_hz + elapsed % NS_PER_S * host->rate_hz / NS_PER_S;
}

/* Nominal values of a device at work; the emulation has no thermal or electrical model. */
static void tx_environment(void *context, struct qmp_environment *out)
{
    (void)context;
    *out = (struct qmp_environment){.temperature_mc = 25000, .bias_mv = 1800, .photocurrent_na = 1200};
}

static void rx_environment(void *context, struct qmp_environment *out)
{
    (void)context;
    *out = (struct qmp_environment){.temperature_mc = -40000, .bias_mv = 62500, .photocurrent_na = 3};
}

static void qrng_environment(void *context, struct qmp_environment *out)
{
    (void)context;
    *out = (struct qmp_environment){.temperature_mc = 31000, .bias_mv = 3300, .photocurrent_na = 850};
}

/* `plan` and the part of the settings that only this personality has. */
static void create(const struct qkn_host_plan *plan, const struct qmp_personality *personality,
                   struct qmp_settings settings, struct qkn_host *host)
{
    host->epoch_ns = plan->epoch_ns;
    host->rate_hz = plan->rate_hz;
    settings.capacity = plan->capacity;
    settings.intensities = plan->intensities;
    settings.emulated = 1;
    memcpy(settings.serial, plan->serial, sizeof settings.serial);
    memcpy(settings.config, plan->config, sizeof settings.config);
    qmp_device_create(&host->device, personality, &host->source, &settings);
}

static struct qmp_settings slot_settings(const struct qkn_host_plan *plan, const struct qkn_optics *optics)
{
    return (struct qmp_settings){.slot_rate_hz = plan->rate_hz,
                                 .sync_interval_slots = optics->sync_interval_slots,
                                 .slot_units = optics->slot_units,
                                 .unit_scale = 1};
}

void qkn_host_create_tx(const struct qkn_host_plan *plan, const struct qkn_optics *optics,
                        const struct qkn_optics_kernel *kernel, struct qkn_host *host)
{
    memset(host, 0, sizeof *host);
    host->optics = *optics;
    host->below.transmitter.optics = &host->optics;
    host->below.transmitter.kernel = kernel;
    host->source = (struct qmp_source){
        .context = &host->below, .choices = qkn_transmitter_choices, .environment = tx_environment};
    create(plan, &qmp_qkd_tx, slot_settings(plan, optics), host);
}

void qkn_host_create_rx(const struct qkn_host_plan *plan, const struct qkn_optics *optics,
                        const struct qkn_optics_kernel *kernel, struct qkn_host *host)
{
    struct qmp_settings settings = slot_settings(plan, optics);
    settings.clock_offset = optics->clock_offset;
    settings.unit_scale = optics->slot_units;
    settings.unit_shift = optics->clock_offset;
    memset(host, 0, sizeof *host);
    host->optics = *optics;
    host->below.receiver.optics = &host->optics;
    host->below.receiver.kernel = kernel;
    host->source = (struct qmp_source){
        .context = &host->below, .tags = qkn_receiver_tags, .environment = rx_environment};
    create(plan, &qmp_qkd_rx, settings, host);
}

void qkn_host_create_qrng(const struct qkn_host_plan *plan, const struct qkn_entropy *entropy,
                          const struct qkn_optics_kernel *kernel, struct qkn_host *host)
{
    memset(host, 0, sizeof *host);
    host->below.entropy = *entropy;
    host->below.entropy.kernel = kernel;
    host->source = (struct qmp_source){
        .context = &host->below, .bytes = qkn_entropy_bytes, .environment = qrng_environment};
    create(plan, &qmp_qrng, (struct qmp_settings){.unit_scale = 1}, host);
}

int qkn_host_bulk_in(struct qkn_host *host, uint64_t now_ns, uint32_t size, uint8_t *out, uint32_t *filled)
{
    *filled = 0;
    if (now_ns < host->epoch_ns)
        return QMP_TRANSFER_OPEN;
    return qmp_stream_transfer(&host->device, position(host, now_ns), size, out, filled);
}

int qkn_host_control(struct qkn_host *host, uint64_t now_ns, uint8_t type, uint8_t request, uint16_t value,
                     uint16_t index, uint16_t length, uint8_t *data)
{
    return qmp_control(&host->device, type, request, value, index, data, length, position(host, now_ns));
}
