#include <string.h>

#include "optics/optics.h"

void qkn_transmitter_choices(void *context, uint64_t first, uint8_t *out)
{
    struct qkn_transmitter *tx = context;
    uint64_t chunk = first / QKN_TX_CHUNK;
    if (tx->chunk != chunk + 1) {
        tx->kernel->choices(tx->optics->seed, chunk * QKN_TX_CHUNK_GROUPS, QKN_TX_CHUNK_GROUPS,
                            tx->optics->choice_limits, tx->choices);
        tx->chunk = chunk + 1;
    }
    memcpy(out, tx->choices + first % QKN_TX_CHUNK / 2, QMP_PAYLOAD_BYTES);
}
