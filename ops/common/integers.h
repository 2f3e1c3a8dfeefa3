// Arithmetic of sizes.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace dcnzoo {

DCNZOO_HD int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace dcnzoo
