#ifndef QMP_PERSONALITIES_H
#define QMP_PERSONALITIES_H
#include "core/device.h"

extern const struct qmp_personality qmp_qkd_tx, qmp_qkd_rx, qmp_qrng;
#endif
