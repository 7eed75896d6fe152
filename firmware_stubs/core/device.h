#ifndef QMP_DEVICE_H
#define QMP_DEVICE_H
#include <stdint.h>

#include "core/faults.h"
#include "core/packet.h"
#include "core/source.h"


enum {
    QMP_STALL = -1, /* answer of qmp_control to what it does not know */
    QMP_BLOCK_BYTES = 64, /* info, health, config */
    QMP_ALARM_BYTES = 8,  /* interrupt endpoint */
};

enum qmp_state { QMP_IDLE = 0, QMP_STREAMING = 1, QMP_FAILED = 2 };

enum qmp_alarm {
    QMP_ALARM_OVERFLOW = 1u << 0,
    QMP_ALARM_RCT = 1u << 1,
    QMP_ALARM_APT = 1u << 2,
    QMP_ALARM_TEMPERATURE = 1u << 3,
    QMP_ALARM_BIAS = 1u << 4,
    QMP_ALARM_TAMPER = 1u << 5,
    QMP_ALARM_STREAM = 1u << 6,
};

struct qmp_device;

/* What makes a device a transmitter, a receiver or a QRNG. */
struct qmp_personality {
    uint8_t code;
    char model[16];
    uint32_t granule; /* streams start, break and resume at multiples of it */
    /* Take up the stream at device->cursor. */
    void (*resume)(struct qmp_device *device);
    /* Build the next packet out of positions below `ready`; 0 if there is none yet. With `drain` set the stream
     * breaks at `ready`: what was held back goes out. */
    int (*packet)(struct qmp_device *device, uint64_t ready, int drain, uint8_t *out);
    /* Test the source at `position`; the alarms to latch. NULL where there is nothing to test. */
    uint32_t (*self_test)(struct qmp_device *device, uint64_t position);
};

/* Fixed while a device lives. */
struct qmp_settings {
    char serial[16];
    uint64_t slot_rate_hz;
    uint64_t sync_interval_slots;
    uint32_t slot_units;   /* slot length in 1/256 ns */
    uint64_t clock_offset; /* 1/256 ns added to every time, modulo 2^64 */
    uint64_t capacity;     /* positions that wait unread before the device drops */
    uint64_t unit_scale;   /* gap markers count position * unit_scale + unit_shift */
    uint64_t unit_shift;
    uint8_t intensities;
    uint8_t emulated;
    uint8_t config[QMP_BLOCK_BYTES];
};

struct qmp_gap {
    int open;        /* the stream breaks at `from` */
    uint64_t from;
    uint64_t length; /* 0: until the host has drained what came before */
};

struct qmp_device {
    const struct qmp_personality *personality;
    const struct qmp_source *source;
    struct qmp_settings settings;

    /* Survive power cycles. */
    uint32_t boot_count;
    uint16_t last_session;

    /* Lost with power. */
    uint32_t state;
    uint16_t session; /* 0 when idle */
    uint32_t sequence;
    uint64_t cursor;    /* all positions below it were taken from the source */
    uint64_t next_sync; /* index of the next pulse */
    struct qmp_gap gap;
    struct qmp_tag held[QMP_RECORDS]; /* receiver: tags that do not fill a packet yet */
    uint32_t held_count;

    uint32_t alarms;
    uint32_t unreported; /* latched, not yet sent on the interrupt endpoint */
    uint32_t alarm_sequence;
    uint32_t rct_failures, apt_failures;
    uint64_t packets, overflows, missed;
#if QMP_FAULTS
    struct qmp_fault fault;
    int blinded;
#endif
};

/* `device` is zeroed memory; personality, source and settings stay with the caller's port. */
void qmp_device_create(struct qmp_device *device, const struct qmp_personality *personality,
                       const struct qmp_source *source, const struct qmp_settings *settings);
/* Power on, or power cycle: counters, alarms and stream are gone, boot count and session counter are not. */
void qmp_device_boot(struct qmp_device *device);

/* Stop and wipe the stream; alarms and a failed state stay. */
void qmp_device_reset(struct qmp_device *device);
void qmp_device_latch(struct qmp_device *device, uint32_t alarms);
/* Start at `position`, in a new session. */
void qmp_stream_start(struct qmp_device *device, uint64_t position);
void qmp_stream_stop(struct qmp_device *device);
/* Next packet of the stream, `now` being the present position; 0 if the endpoint has nothing to send. */
int qmp_stream_packet(struct qmp_device *device, uint64_t now, uint8_t *out);
/* Bulk IN: whole packets into the `size` bytes at `out`. OPEN: the endpoint NAKs or `out` is full; ENDED: the device ended
 * the transfer with a short packet; STALLED: it halted. *filled bytes were written. */
enum qmp_transfer { QMP_TRANSFER_OPEN, QMP_TRANSFER_ENDED, QMP_TRANSFER_STALLED };
int qmp_stream_transfer(struct qmp_device *device, uint64_t now, uint32_t size, uint8_t *out, uint32_t *filled);
/* The host cleared the halt of the bulk endpoint. */
void qmp_stream_clear_halt(struct qmp_device *device);
/* Seal a packet of the running session and count it. */
void qmp_stream_seal(struct qmp_device *device, uint8_t *packet, uint8_t type, uint16_t count, uint64_t base);
/* The sync packet of pulse device->next_sync, which advances. */
void qmp_stream_sync(struct qmp_device *device, uint8_t *packet);

/* EP0 vendor request; bytes answered or taken, or QMP_STALL. `data` holds `length` bytes, at least QMP_BLOCK_BYTES
 * for an IN request that asks for as many. */
int qmp_control(struct qmp_device *device, uint8_t type, uint8_t request, uint16_t value, uint16_t index,
                uint8_t *data, uint16_t length, uint64_t now);
/* Interrupt endpoint: QMP_ALARM_BYTES of one newly latched alarm, or 0. */
int qmp_interrupt(struct qmp_device *device, uint8_t *out);
#endif
