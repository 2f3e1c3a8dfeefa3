// If `together`, all threads of parallel_for write the same number, and `nox -s sanitize` must report a data
// race. Otherwise each thread writes its own number.
#include "common/parallel.h"

extern "C" int64_t race(int together) {
  int64_t sums[4] = {};
  dcnzoo::parallel_for(4, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sums[together ? 0 : i] += i;
  });
  return sums[0];
}
