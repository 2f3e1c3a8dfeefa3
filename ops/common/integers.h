// Integer arithmetic for sizes.
#pragma once

#include <cstdint>
#include <type_traits>

#include "host_device.h"

namespace dcnzoo {

DCNZOO_HD int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

DCNZOO_HD int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

// Divides by a number >= 1 that is known before a kernel starts, with a multiplication and a shift: GPUs have no
// division of integers. Exact for every value >= 0 (Granlund and Montgomery 1994).
template <typename Int>
class Divisor {
  using Unsigned = std::make_unsigned_t<Int>;
  using Wide = std::conditional_t<sizeof(Int) == 8, unsigned __int128, uint64_t>;
  static constexpr int kBits = 8 * sizeof(Int);
  Int divisor_ = 1;
  Unsigned factor_ = Unsigned(1) << (kBits - 1);  // 2^(kBits - 1 + shift) / divisor, rounded up
  int shift_ = 0;                                 // log2(divisor), rounded up

 public:
  Divisor() = default;
  Divisor(Int divisor) : divisor_(divisor) {
    while ((Unsigned(1) << shift_) < Unsigned(divisor)) ++shift_;
    factor_ = Unsigned(((Wide(1) << (kBits - 1 + shift_)) + divisor - 1) / divisor);
  }

  DCNZOO_HD Int quotient(Int value) const {
    return Int(Unsigned(Wide(factor_) * (2 * Unsigned(value)) >> kBits) >> shift_);
  }

  // Returns the remainder, and replaces the value by the quotient.
  DCNZOO_HD Int split(Int& value) const {
    const Int whole = value;
    value = quotient(whole);
    return whole - value * divisor_;
  }
};

}  // namespace dcnzoo
