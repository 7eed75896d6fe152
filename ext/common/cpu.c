/* CPU features by cpuid, and by xgetbv for the register state that the operating system saves. */
#include "cpu.h"

#include "isa.h"

#if QKN_X86
#include <cpuid.h>

/* Register files of XCR0: SSE and AVX; with them the mask registers and both parts of the 512-bit file. */
#define XCR0_AVX 0x06u
#define XCR0_AVX512 0xe6u

enum word { LEAF1_C, LEAF7_B, LEAF7_C };

static const struct {
    unsigned feature;
    enum word word;
    unsigned bit;
    unsigned xcr0;
} features[] = {
    {QKN_CPU_SSSE3, LEAF1_C, 9, 0},
    {QKN_CPU_PCLMUL, LEAF1_C, 1, 0},
    {QKN_CPU_AVX2, LEAF7_B, 5, XCR0_AVX},
    {QKN_CPU_GFNI, LEAF7_C, 8, 0},
    {QKN_CPU_VPCLMUL, LEAF7_C, 10, XCR0_AVX},
    {QKN_CPU_AVX512F, LEAF7_B, 16, XCR0_AVX512},
    {QKN_CPU_AVX512BW, LEAF7_B, 30, XCR0_AVX512},
    {QKN_CPU_AVX512VL, LEAF7_B, 31, XCR0_AVX512},
    {QKN_CPU_AVX512DQ, LEAF7_B, 17, XCR0_AVX512},
    {QKN_CPU_AVX512VBMI, LEAF7_C, 1, XCR0_AVX512},
    {QKN_CPU_AVX512VBMI2, LEAF7_C, 6, XCR0_AVX512},
};

static unsigned saved_state(unsigned leaf1_c)
{
    const unsigned osxsave = 1u << 27;
    if (!(leaf1_c & osxsave))
        return 0;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static unsigned detect(void)
{
    unsigned a, b, c, d, words[3] = {0, 0, 0}, found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return 0;
    words[LEAF1_C] = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        words[LEAF7_B] = b;
        words[LEAF7_C] = c;
    }
    unsigned xcr0 = saved_state(words[LEAF1_C]);
    for (unsigned i = 0; i < sizeof features / sizeof *features; i++)
        if ((words[features[i].word] >> features[i].bit & 1u) && (xcr0 & features[i].xcr0) == features[i].xcr0)
            found |= features[i].feature;
    return found;
}

/* A virtual machine traps each cpuid, some 20 us: asked once. Threads that race write the same value. */
unsigned qkn_cpu_features(void)
{
    static _Atomic unsigned known;
    const unsigned asked = 1u << 31;
    if (!(known & asked))
        known = detect() | asked;
    return known & ~asked;
}
#else
unsigned qkn_cpu_features(void)
{
    return 0;
}
#endif
