#ifndef FUZZ_DRIVER_H
#define FUZZ_DRIVER_H
#include <stddef.h>
#include <stdint.h>

/* One parser of the C core: takes an input whose memory ends where the input does. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

void fuzz_coverage_begin(void);
uint32_t fuzz_coverage_end(void); /* edges met for the first time */
#endif
