#ifndef QMP_FAULTS_H
#define QMP_FAULTS_H
#include <stdint.h>

#include "core/packet.h"

#ifndef QMP_FAULTS
#define QMP_FAULTS 0 /* 1 builds fault injection in, for the emulated devices only; info.flags says so */
#endif

#if QMP_FAULTS
/* Each befalls the stream once, at its next packet. */
enum qmp_fault_kind {
    QMP_FAULT_NONE,
    QMP_FAULT_STALL,     /* the endpoint halts until the host clears it */
    QMP_FAULT_NAK,       /* silence until the stream is started again */
    QMP_FAULT_CRC,       /* a bit is flipped after sealing */
    QMP_FAULT_GAP,       /* ten packets' worth of positions is lost and marked */
    QMP_FAULT_DROP,      /* a packet is lost without a marker */
    QMP_FAULT_TRUNCATE,  /* the transfer ends inside a packet */
    QMP_FAULT_EMPTY,     /* the transfer ends with no data */
    QMP_FAULT_DUPLICATE, /* a packet comes twice */
    QMP_FAULT_REORDER,   /* two packets change places */
    QMP_FAULT_SESSION,   /* a packet carries the session before this one */
    QMP_FAULT_TYPE,      /* a packet of an unknown type */
    QMP_FAULT_TAMPER,    /* the tamper alarm latches */
    QMP_FAULT_BLINDING,  /* bright light: the photocurrent soars, the bias voltage gives way, until a power cycle */
    QMP_FAULT_KINDS,
};

struct qmp_fault {
    enum qmp_fault_kind kind; /* waits for the next packet */
    int stalled;
    int silent;
    enum { QMP_SPARE_NONE, QMP_SPARE_NEXT, QMP_SPARE_AFTER_NEXT } spare; /* when `packet` goes out */
    uint8_t packet[QMP_PACKET_BYTES];
};

struct qmp_device;
/* 0, or -1 for an unknown kind or, tamper and blinding apart, a stream that does not run. */
int qmp_fault_inject(struct qmp_device *device, int kind);
/* qmp_stream_packet with the faults that wait: status as qmp_stream_transfer, *size bytes written. */
int qmp_fault_packet(struct qmp_device *device, uint64_t now, uint8_t *out, uint32_t *size);
#endif
#endif
