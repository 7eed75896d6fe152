#include "core/faults.h"

#if QMP_FAULTS
#include <string.h>

#include "core/bytes.h"
#include "core/device.h"

enum { LOST_PACKETS = 10, TRUNCATED_BYTES = 200, UNKNOWN_TYPE = 0x7F };

static void open_gap(struct qmp_device *device)
{
    device->gap.open = 1;
    device->gap.from = device->cursor;
    device->gap.length = LOST_PACKETS * QMP_SLOTS_PER_PACKET;
    device->overflows++;
    qmp_device_latch(device, QMP_ALARM_OVERFLOW);
}

int qmp_fault_inject(struct qmp_device *device, int kind)
{
    if (kind == QMP_FAULT_TAMPER) {
        qmp_device_latch(device, QMP_ALARM_TAMPER);
        return 0;
    }
    if (kind == QMP_FAULT_BLINDING) {
        device->blinded = 1;
        return 0;
    }
    if (kind <= QMP_FAULT_NONE || kind >= QMP_FAULT_KINDS || device->state != QMP_STREAMING)
        return -1;
    device->fault.kind = (enum qmp_fault_kind)kind;
    return 0;
}

/* Spoil the packet just built. */
static int befall(struct qmp_device *device, enum qmp_fault_kind kind, uint64_t now, uint8_t *out, uint32_t *size)
{
    struct qmp_fault *fault = &device->fault;
    uint16_t session = device->session;
    switch (kind) {
    case QMP_FAULT_CRC:
        out[QMP_HEADER_BYTES] ^= 1;
        break;
    case QMP_FAULT_DROP:
        *size = qmp_stream_packet(device, now, out) ? QMP_PACKET_BYTES : 0;
        break;
    case QMP_FAULT_TRUNCATE:
        *size = TRUNCATED_BYTES;
        return QMP_TRANSFER_ENDED;
    case QMP_FAULT_DUPLICATE:
        memcpy(fault->packet, out, QMP_PACKET_BYTES);
        fault->spare = QMP_SPARE_NEXT;
        break;
    case QMP_FAULT_REORDER:
        memcpy(fault->packet, out, QMP_PACKET_BYTES);
        fault->spare = QMP_SPARE_AFTER_NEXT;
        return qmp_fault_packet(device, now, out, size);
    case QMP_FAULT_SESSION:
        qmp_put16(out + 4, session > 1 ? (uint16_t)(session - 1) : UINT16_MAX);
        qmp_packet_reseal(out);
        break;
    case QMP_FAULT_TYPE:
        out[3] = UNKNOWN_TYPE;
        qmp_packet_reseal(out);
        break;
    default:
        break;
    }
    return QMP_TRANSFER_OPEN;
}

int qmp_fault_packet(struct qmp_device *device, uint64_t now, uint8_t *out, uint32_t *size)
{
    struct qmp_fault *fault = &device->fault;
    enum qmp_fault_kind kind = fault->kind;
    *size = 0;
    if (kind == QMP_FAULT_STALL || kind == QMP_FAULT_NAK || kind == QMP_FAULT_EMPTY || kind == QMP_FAULT_GAP)
        fault->kind = QMP_FAULT_NONE;
    fault->stalled |= kind == QMP_FAULT_STALL;
    fault->silent |= kind == QMP_FAULT_NAK;
    if (fault->stalled)
        return QMP_TRANSFER_STALLED;
    if (kind == QMP_FAULT_EMPTY)
        return QMP_TRANSFER_ENDED;
    if (kind == QMP_FAULT_GAP)
        open_gap(device);
    if (fault->silent)
        return QMP_TRANSFER_OPEN;
    if (fault->spare == QMP_SPARE_NEXT) {
        memcpy(out, fault->packet, QMP_PACKET_BYTES);
        fault->spare = QMP_SPARE_NONE;
        *size = QMP_PACKET_BYTES;
        return QMP_TRANSFER_OPEN;
    }
    if (!qmp_stream_packet(device, now, out))
        return QMP_TRANSFER_OPEN;
    *size = QMP_PACKET_BYTES;
    if (fault->spare == QMP_SPARE_AFTER_NEXT)
        fault->spare = QMP_SPARE_NEXT;
    fault->kind = QMP_FAULT_NONE;
    return befall(device, kind, now, out, size);
}
#endif
