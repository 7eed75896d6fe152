#define QKN_KERNEL(verb) qkn_optics_##verb##_portable
#define QKN_OPTICS_KERNEL qkn_optics_portable
#define QKN_KERNEL_NAME "portable"

#include "optics/kernel_body.h"
