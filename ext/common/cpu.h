#ifndef QKN_CPU_H
#define QKN_CPU_H
/* Instruction sets that this CPU has and, where they widen the registers, that the system saves. Each is detected on
 * its own: VPCLMULQDQ and GFNI exist without AVX-512. */
enum qkn_cpu_feature {
    QKN_CPU_SSSE3 = 1 << 0,
    QKN_CPU_PCLMUL = 1 << 1,
    QKN_CPU_AVX2 = 1 << 2,
    QKN_CPU_GFNI = 1 << 3,
    QKN_CPU_VPCLMUL = 1 << 4,
    QKN_CPU_AVX512F = 1 << 5,
    QKN_CPU_AVX512BW = 1 << 6,
    QKN_CPU_AVX512VL = 1 << 7,
    QKN_CPU_AVX512DQ = 1 << 8,
    QKN_CPU_AVX512VBMI = 1 << 9,
    QKN_CPU_AVX512VBMI2 = 1 << 10,
};

/* The set of qkn_cpu_feature that may be used here; 0 on other architectures. */
unsigned qkn_cpu_features(void);
#endif
