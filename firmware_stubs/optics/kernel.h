#ifndef QKN_OPTICS_KERNEL_H
#define QKN_OPTICS_KERNEL_H
#include <stdint.h>

/* The random numbers of many slots at a time. kernel_portable.c is the definition; the others give the same numbers with
 * wider vectors, so that a seed names one link on every machine. */
enum {
    QKN_CHOICE_GROUP = 64, /* slots per group of choices */
    QKN_CHOICE_LIMITS = 5, /* between the cells of three intensities and two bases */
    QKN_WORD_GROUP = 64,   /* 32-bit words per group */
};

struct qkn_optics_kernel {
    const char *name;
    /* out: one nibble per slot of `groups` groups from group `first`: bit 0 basis, 1 bit value, 2-3 intensity. The cell
     * 2 * intensity + basis of a slot is the number of limits that its 31-bit uniform reaches. */
    void (*choices)(uint64_t seed, uint64_t first, uint32_t groups, const uint32_t *limits, uint8_t *out);
    /* out: `groups` groups of uniform words from group `first` of the stream. */
    void (*words)(uint64_t seed, uint32_t stream, uint64_t first, uint32_t groups, uint32_t *out);
    /* out[w * stride + i]: word w of the block with index base + offset[i], for i < count; base is a multiple of a
     * power of two above every offset. Offsets and out have room up to count rounded up to 16. */
    void (*blocks)(uint64_t seed, uint32_t stream, uint64_t base, const uint16_t *offset, uint32_t count,
                   uint32_t stride, uint32_t *out);
};

/* Kernels of this build, fastest first, ended by NULL. */
extern const struct qkn_optics_kernel *const qkn_optics_kernels[];
extern const struct qkn_optics_kernel qkn_optics_portable;
#if defined(__x86_64__)
extern const struct qkn_optics_kernel qkn_optics_avx2, qkn_optics_avx512;
#endif

/* 1 if this CPU and operating system run the kernel. */
int qkn_optics_kernel_runs(const struct qkn_optics_kernel *kernel);
#endif
