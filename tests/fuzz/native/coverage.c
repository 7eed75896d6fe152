/* Edges for gcc's -fsanitize-coverage=trace-pc. This file itself is compiled without it. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "driver.h"

enum { EDGES = 1 << 16 };
static uint8_t ever[EDGES], now[EDGES];
static uintptr_t before;

void __sanitizer_cov_trace_pc(void)
{
    uintptr_t here = (uintptr_t)__builtin_return_address(0);
    uintptr_t at = (here ^ (before << 3) ^ (here >> 17)) & (EDGES - 1);
    before = here;
    if (now[at] < 255)
        now[at]++;
}

void fuzz_coverage_begin(void)
{
    memset(now, 0, sizeof now);
    before = 0;
}

/* Counts in classes 1, 2, 3, 4-7, 8-15, ...: a loop run twice as often is something new. */
uint32_t fuzz_coverage_end(void)
{
    uint32_t fresh = 0;
    for (size_t i = 0; i < EDGES; i++) {
        if (!now[i])
            continue;
        int log2 = 31 - __builtin_clz((uint32_t)now[i]);
        uint8_t class = (uint8_t)(1 << (now[i] < 4 ? now[i] - 1 : log2 < 6 ? log2 + 1 : 7));
        if (!(ever[i] & class)) {
            ever[i] |= class;
            fresh++;
        }
    }
    return fresh;
}
