#ifndef QKN_ISA_H
#define QKN_ISA_H
/* Code for one instruction set inside a portable build:
 *     #if QKN_X86
 *     ISA_BEGIN("avx2,pclmul")
 *     ... functions that may use these instructions ...
 *     ISA_END
 *     #endif
 * Only a caller that asked qkn_cpu_features() may enter such a function. */

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernels read bit strings as little-endian words"
#endif

#define QKN_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define ISA_BEGIN(features) QKN_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define ISA_END QKN_PRAGMA(clang attribute pop)
#elif defined(__GNUC__)
#define ISA_BEGIN(features) QKN_PRAGMA(GCC push_options) QKN_PRAGMA(GCC target(features))
#define ISA_END QKN_PRAGMA(GCC pop_options)
#endif

#if defined(__x86_64__) && defined(ISA_BEGIN)
#define QKN_X86 1
#include <immintrin.h>
#else
#define QKN_X86 0
#endif

/* Whether a kernel can be entered; each family answers it for its kernels by number. */
enum qkn_kernel_state {
    QKN_KERNEL_RUNS = 0,
    QKN_KERNEL_NOT_BUILT = 1, /* this build has no code for it */
    QKN_KERNEL_CPU_LACKS = 2,
};
#endif
