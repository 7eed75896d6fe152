/* Reads inputs from stdin, each behind its length (u32), and answers each with the number of new edges (u32).
 * A sanitizer ends the process: the input that it was given last is the finding. */
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    uint32_t size;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        uint8_t *data = malloc(size ? size : 1);
        if (!data || (size && fread(data, 1, size, stdin) != size))
            return 2;
        fuzz_coverage_begin();
        LLVMFuzzerTestOneInput(data, size);
        uint32_t fresh = fuzz_coverage_end();
        free(data);
        if (fwrite(&fresh, sizeof fresh, 1, stdout) != 1 || fflush(stdout))
            return 2;
    }
    return 0;
}
