// Integer arithmetic for sizes.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace dcnzoo {

DCNZOO_HD int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

DCNZOO_HD int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

}  // namespace dcnzoo
