/* The running POLYVAL: choice of kernel, padding of the last block, joining of two sums. */
#include <string.h>

#include "cpu.h"
#include "isa.h"
#include "kernels.h"

static const struct {
    qkn_polyval_dot *dot;
    qkn_polyval_blocks *blocks;
    unsigned features;
} kernels[QKN_POLYVAL_KERNELS] = {
    [QKN_POLYVAL_PORTABLE] = {qkn_polyval_dot_portable, qkn_polyval_blocks_portable, 0},
#if QKN_X86
    [QKN_POLYVAL_CLMUL] = {qkn_polyval_dot_clmul, qkn_polyval_blocks_clmul, QKN_CPU_PCLMUL | QKN_CPU_AVX2},
#endif
};

int qkn_polyval_state(int kernel)
{
    if (kernel < 0 || kernel >= QKN_POLYVAL_KERNELS || !kernels[kernel].dot)
        return QKN_KERNEL_NOT_BUILT;
    unsigned needs = kernels[kernel].features;
    return (qkn_cpu_features() & needs) == needs ? QKN_KERNEL_RUNS : QKN_KERNEL_CPU_LACKS;
}

int qkn_polyval_start(int kernel, const uint8_t key[QKN_POLYVAL_BLOCK], struct qkn_polyval *out)
{
    if (qkn_polyval_state(kernel) != QKN_KERNEL_RUNS)
        return -1;
    memset(out->sum, 0, sizeof out->sum);
    memcpy(out->powers[0], key, QKN_POLYVAL_BLOCK);
    for (int i = 1; i < QKN_POLYVAL_POWERS; i++)
        kernels[kernel].dot(out->powers[i - 1], out->powers[0], out->powers[i]);
    return 0;
}

int qkn_polyval_absorb(int kernel, const uint8_t *data, size_t bytes, struct qkn_polyval *out)
{
    if (kernel < 0 || kernel >= QKN_POLYVAL_KERNELS || !kernels[kernel].dot)
        return -1;
    size_t whole = bytes / QKN_POLYVAL_BLOCK, rest = bytes % QKN_POLYVAL_BLOCK;
    kernels[kernel].blocks(data, whole, out);
    if (rest) {
        uint64_t last[2] = {0, 0};
        memcpy(last, data + whole * QKN_POLYVAL_BLOCK, rest);
        last[0] ^= out->sum[0];
        last[1] ^= out->sum[1];
        kernels[kernel].dot(last, out->powers[0], out->sum);
        explicit_bzero(last, sizeof last);
    }
    return 0;
}

int qkn_polyval_append(int kernel, const uint64_t later[2], uint64_t blocks, struct qkn_polyval *out)
{
    if (kernel < 0 || kernel >= QKN_POLYVAL_KERNELS || !kernels[kernel].dot)
        return -1;
    uint64_t power[2] = {out->powers[0][0], out->powers[0][1]};
    uint64_t added[2] = {later[0], later[1]}; /* a sum may be appended to itself */
    for (; blocks; blocks >>= 1) {
        if (blocks & 1)
            kernels[kernel].dot(out->sum, power, out->sum);
        kernels[kernel].dot(power, power, power);
    }
    out->sum[0] ^= added[0];
    out->sum[1] ^= added[1];
    explicit_bzero(power, sizeof power);
    explicit_bzero(added, sizeof added);
    return 0;
}
