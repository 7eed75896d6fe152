#ifndef QKN_SECRET_MEMORY_H
#define QKN_SECRET_MEMORY_H
#include <stddef.h>

/* Memory for key material. Every mapping is left out of core dumps and of forked children. */
enum qkn_secret_mode {
    QKN_SECRET_NONE = 0,
    QKN_SECRET_MLOCK = 1,  /* anonymous, locked, MADV_DONTDUMP */
    QKN_SECRET_MEMFD = 2,  /* memfd_secret: not even root's debugger or the kernel's direct map reads it */
};

/* Strongest mode that works here; QKN_SECRET_NONE if neither does. Probes once. */
int qkn_secret_probe(void);

/* Allocate from the locked arena, or from a mapping of its own when large. 0, or -1 with errno. Zeroed. */
int qkn_secret_allocate(size_t bytes, void **out);
/* Wipe and give back; bytes as allocated. */
void qkn_secret_free(void *memory, size_t bytes);

/* A mapping for raw to reconciled bits: not dumped, not forked, locked as far as the limit allows.
 * locked is 1 if mlock succeeded. 0, or -1 with errno. */
int qkn_working_allocate(size_t bytes, void **out, int *locked);
void qkn_working_free(void *memory, size_t bytes, int locked);

/* Zero that the compiler may not remove. */
void qkn_wipe(void *memory, size_t bytes);
/* Zero the vector registers that a copy may have used, in the calling thread. */
void qkn_forget_registers(void);
/* 1 if equal, 0 if not; time depends on bytes alone. */
int qkn_equal(const void *a, const void *b, size_t bytes);
#endif
