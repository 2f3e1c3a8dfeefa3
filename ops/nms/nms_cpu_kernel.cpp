#include "nms_cpu_kernel.h"

#include "nms_math.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

template <typename T>
void suppress(BoxList<T> boxes, T threshold, T offset, IntegerOf<T>* __restrict suppressed) {
  using Flag = IntegerOf<T>;
  const T *x1 = boxes.x1, *y1 = boxes.y1, *x2 = boxes.x2, *y2 = boxes.y2, *area = boxes.area;
  for (int64_t i = 0; i < boxes.count; ++i) suppressed[i] = 0;
  for (int64_t i = 0; i < boxes.count; ++i) {
    if (suppressed[i]) continue;
    const Box<T> kept{x1[i], y1[i], x2[i], y2[i]};
    const T kept_area = area[i];
    for (int64_t j = i + 1; j < boxes.count; ++j) {
      const Box<T> other{x1[j], y1[j], x2[j], y2[j]};
      suppressed[j] |= overlaps(kept, kept_area, other, area[j], threshold, offset) ? Flag(1) : Flag(0);
    }
  }
}

}  // namespace

const KernelTable<NmsKernels>& nms_kernels() {
  static constexpr KernelTable<NmsKernels> kernels{{suppress<float>}, {suppress<double>}};
  return kernels;
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
