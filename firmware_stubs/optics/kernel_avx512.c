#if defined(__x86_64__)
#include <stdint.h>
#include <string.h>

#include "optics/isa.h"

#define QKN_KERNEL(verb) qkn_optics_##verb##_avx512
#define QKN_OPTICS_KERNEL qkn_optics_avx512
#define QKN_KERNEL_NAME "avx512"

QKN_ISA_BEGIN("avx512f,avx512bw,avx512dq,avx512vl")
#include "optics/kernel_body.h"
QKN_ISA_END
#endif
