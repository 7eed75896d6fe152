/* Locked, undumpable memory. Callers serialise allocation and release (the Cython face holds the GIL). */
#define _GNU_SOURCE
#include "secret_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif

/* A region of 256 KiB holds 8192 granules of 32 bytes, one 256-bit key each. */
#define GRANULE 32u
#define REGION_BYTES (256u * 1024u)
#define REGION_GRANULES (REGION_BYTES / GRANULE)
#define REGIONS_MAX 1024u

static struct region {
    unsigned char *base;
    uint8_t used[REGION_GRANULES];
    unsigned free_granules;
    unsigned next; /* where the last search ended */
} *regions[REGIONS_MAX];
static unsigned region_count;
static int probed_mode = -1;
static size_t working_locked; /* bytes of working buffers that are locked */

void qkn_wipe(void *memory, size_t bytes)
{
    explicit_bzero(memory, bytes);
}

/* A copy leaves its last bytes in vector registers, from where a thread that then waits for hours shows them in a core
 * dump, and the dynamic linker or a signal saves them on the stack. */
void qkn_forget_registers(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        __asm__ volatile("vpxorq %%zmm16, %%zmm16, %%zmm16\n\tvpxorq %%zmm17, %%zmm17, %%zmm17\n\t"
                         "vpxorq %%zmm18, %%zmm18, %%zmm18\n\tvpxorq %%zmm19, %%zmm19, %%zmm19\n\t"
                         "vpxorq %%zmm20, %%zmm20, %%zmm20\n\tvpxorq %%zmm21, %%zmm21, %%zmm21\n\t"
                         "vpxorq %%zmm22, %%zmm22, %%zmm22\n\tvpxorq %%zmm23, %%zmm23, %%zmm23\n\t"
                         "vpxorq %%zmm24, %%zmm24, %%zmm24\n\tvpxorq %%zmm25, %%zmm25, %%zmm25\n\t"
                         "vpxorq %%zmm26, %%zmm26, %%zmm26\n\tvpxorq %%zmm27, %%zmm27, %%zmm27\n\t"
                         "vpxorq %%zmm28, %%zmm28, %%zmm28\n\tvpxorq %%zmm29, %%zmm29, %%zmm29\n\t"
                         "vpxorq %%zmm30, %%zmm30, %%zmm30\n\tvpxorq %%zmm31, %%zmm31, %%zmm31" ::
                             : "memory"); /* the compiler itself uses none of them: it was not told that they exist */
    if (__builtin_cpu_supports("avx"))
        __asm__ volatile("vzeroall" ::: "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                         "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    else
        __asm__ volatile("pxor %%xmm0, %%xmm0\n\tpxor %%xmm1, %%xmm1\n\tpxor %%xmm2, %%xmm2\n\t"
                         "pxor %%xmm3, %%xmm3\n\tpxor %%xmm4, %%xmm4\n\tpxor %%xmm5, %%xmm5\n\t"
                         "pxor %%xmm6, %%xmm6\n\tpxor %%xmm7, %%xmm7\n\tpxor %%xmm8, %%xmm8\n\t"
                         "pxor %%xmm9, %%xmm9\n\tpxor %%xmm10, %%xmm10\n\tpxor %%xmm11, %%xmm11\n\t"
                         "pxor %%xmm12, %%xmm12\n\tpxor %%xmm13, %%xmm13\n\tpxor %%xmm14, %%xmm14\n\t"
                         "pxor %%xmm15, %%xmm15" ::: "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",
                         "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
#elif defined(__aarch64__)
    /* v8 to v15 belong to the caller of a function in their lower halves: no copy uses them. */
    __asm__ volatile("movi v0.16b, #0\n\tmovi v1.16b, #0\n\tmovi v2.16b, #0\n\tmovi v3.16b, #0\n\t"
                     "movi v4.16b, #0\n\tmovi v5.16b, #0\n\tmovi v6.16b, #0\n\tmovi v7.16b, #0\n\t"
                     "movi v16.16b, #0\n\tmovi v17.16b, #0\n\tmovi v18.16b, #0\n\tmovi v19.16b, #0\n\t"
                     "movi v20.16b, #0\n\tmovi v21.16b, #0\n\tmovi v22.16b, #0\n\tmovi v23.16b, #0\n\t"
                     "movi v24.16b, #0\n\tmovi v25.16b, #0\n\tmovi v26.16b, #0\n\tmovi v27.16b, #0\n\t"
                     "movi v28.16b, #0\n\tmovi v29.16b, #0\n\tmovi v30.16b, #0\n\tmovi v31.16b, #0" ::: "memory",
                     "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21", "v22",
                     "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31");
#endif
}

int qkn_equal(const void *a, const void *b, size_t bytes)
{
    const volatile unsigned char *x = a, *y = b;
    unsigned char difference = 0;
    for (size_t i = 0; i < bytes; i++)
        difference |= x[i] ^ y[i];
    return (int)(1u & (((unsigned)difference - 1u) >> 8));
}

static size_t whole_pages(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

static void *map_memfd_secret(size_t bytes)
{
    int fd = (int)syscall(SYS_memfd_secret, (unsigned)O_CLOEXEC);
    if (fd < 0)
        return MAP_FAILED;
    void *memory = MAP_FAILED;
    if (ftruncate(fd, (off_t)bytes) == 0)
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return memory;
}

static void *map_locked(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return MAP_FAILED;
    if (mlock(memory, bytes) != 0 || madvise(memory, bytes, MADV_DONTDUMP) != 0) {
        int saved = errno;
        munmap(memory, bytes);
        errno = saved;
        return MAP_FAILED;
    }
    return memory;
}

static void *map_secret(size_t bytes, int mode)
{
    void *memory = mode == QKN_SECRET_MEMFD ? map_memfd_secret(bytes) : map_locked(bytes);
    if (memory != MAP_FAILED && madvise(memory, bytes, MADV_DONTFORK) != 0) {
        int saved = errno;
        munmap(memory, bytes);
        errno = saved;
        return MAP_FAILED;
    }
    return memory;
}

int qkn_secret_probe(void)
{
    if (probed_mode >= 0)
        return probed_mode;
    size_t bytes = whole_pages(1);
    probed_mode = QKN_SECRET_NONE;
    for (int mode = QKN_SECRET_MEMFD; mode > QKN_SECRET_NONE; mode--) {
        void *memory = map_secret(bytes, mode);
        if (memory == MAP_FAILED)
            continue;
        memset(memory, 0xa5, bytes);
        munmap(memory, bytes);
        probed_mode = mode;
        break;
    }
    return probed_mode;
}

static int add_region(void)
{
    if (region_count == REGIONS_MAX) {
        errno = ENOMEM;
        return -1;
    }
    /* The bookkeeping holds no secrets: an ordinary mapping will do. */
    struct region *region = mmap(NULL, whole_pages(sizeof *region), PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (region == MAP_FAILED)
        return -1;
    void *base = map_secret(REGION_BYTES, qkn_secret_probe());
    if (base == MAP_FAILED) {
        int saved = errno;
        munmap(region, whole_pages(sizeof *region));
        errno = saved;
        return -1;
    }
    region->base = base;
    region->free_granules = REGION_GRANULES;
    regions[region_count++] = region;
    return 0;
}

/* First free run of `need` granules in [from, to); REGION_GRANULES if none. */
static unsigned find_run(const struct region *region, unsigned need, unsigned from, unsigned to)
{
    unsigned run = 0;
    for (unsigned i = from; i < to; i++) {
        run = region->used[i] ? 0 : run + 1;
        if (run == need)
            return i + 1 - need;
    }
    return REGION_GRANULES;
}

static void *take(struct region *region, unsigned need)
{
    if (region->free_granules < need)
        return NULL;
    unsigned at = find_run(region, need, region->next, REGION_GRANULES);
    if (at == REGION_GRANULES)
        at = find_run(region, need, 0, REGION_GRANULES);
    if (at == REGION_GRANULES)
        return NULL;
    memset(region->used + at, 1, need);
    region->free_granules -= need;
    region->next = (at + need) % REGION_GRANULES;
    return region->base + (size_t)at * GRANULE;
}

static int is_large(size_t bytes)
{
    return bytes > REGION_BYTES / 4;
}

int qkn_secret_allocate(size_t bytes, void **out)
{
    if (bytes == 0) {
        errno = EINVAL;
        return -1;
    }
    if (qkn_secret_probe() == QKN_SECRET_NONE) {
        errno = ENOTSUP;
        return -1;
    }
    if (is_large(bytes)) {
        void *memory = map_secret(whole_pages(bytes), qkn_secret_probe());
        if (memory == MAP_FAILED)
            return -1;
        *out = memory;
        return 0;
    }
    unsigned need = (unsigned)((bytes + GRANULE - 1) / GRANULE);
    for (unsigned i = 0; i < region_count; i++) {
        void *memory = take(regions[i], need);
        if (memory) {
            *out = memory;
            return 0;
        }
    }
    if (add_region() != 0)
        return -1;
    *out = take(regions[region_count - 1], need);
    return 0;
}

void qkn_secret_free(void *memory, size_t bytes)
{
    qkn_wipe(memory, bytes);
    if (is_large(bytes)) {
        munmap(memory, whole_pages(bytes));
        return;
    }
    unsigned need = (unsigned)((bytes + GRANULE - 1) / GRANULE);
    for (unsigned i = 0; i < region_count; i++) {
        struct region *region = regions[i];
        unsigned char *at = memory;
        if (at < region->base || at >= region->base + REGION_BYTES)
            continue;
        memset(region->used + (size_t)(at - region->base) / GRANULE, 0, need);
        region->free_granules += need;
        return;
    }
}

/* Working buffers may lock a quarter of the limit: the rest is for key material, which must be locked. */
static int may_lock_working(size_t bytes)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0)
        return 0;
    return limit.rlim_cur == RLIM_INFINITY || working_locked + bytes <= limit.rlim_cur / 4;
}

int qkn_working_allocate(size_t bytes, void **out, int *locked)
{
    void *memory = mmap(NULL, whole_pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -1;
    if (madvise(memory, whole_pages(bytes), MADV_DONTDUMP) != 0 ||
        madvise(memory, whole_pages(bytes), MADV_DONTFORK) != 0) {
        int saved = errno;
        munmap(memory, whole_pages(bytes));
        errno = saved;
        return -1;
    }
    *locked = may_lock_working(whole_pages(bytes)) && mlock(memory, whole_pages(bytes)) == 0;
    if (*locked)
        working_locked += whole_pages(bytes);
    *out = memory;
    return 0;
}

void qkn_working_free(void *memory, size_t bytes, int locked)
{
    qkn_wipe(memory, bytes);
    if (locked)
        working_locked -= whole_pages(bytes);
    munmap(memory, whole_pages(bytes));
}
