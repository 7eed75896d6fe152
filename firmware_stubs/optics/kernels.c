#include <stddef.h>

#include "optics/kernel.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are read as bytes");

#if defined(__x86_64__)
const struct qkn_optics_kernel *const qkn_optics_kernels[] = {
    &qkn_optics_avx512, &qkn_optics_avx2, &qkn_optics_portable, NULL};

/* The builtins look at cpuid and at the register state that the operating system saves (xgetbv). */
int qkn_optics_kernel_runs(const struct qkn_optics_kernel *kernel)
{
    __builtin_cpu_init();
    if (kernel == &qkn_optics_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (kernel == &qkn_optics_avx2)
        return __builtin_cpu_supports("avx2") != 0;
    return 1;
}
#else
const struct qkn_optics_kernel *const qkn_optics_kernels[] = {&qkn_optics_portable, NULL};

int qkn_optics_kernel_runs(const struct qkn_optics_kernel *kernel)
{
    (void)kernel;
    return 1;
}
#endif
