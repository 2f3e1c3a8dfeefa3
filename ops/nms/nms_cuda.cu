#include "../common/dispatch.cuh"
#include "../common/launch.cuh"
#include "nms_math.h"
#include "nms_checks.h"

namespace dcnzoo {
namespace {

using Word = unsigned long long;
constexpr int kWord = 64;  // boxes per word of the bit mask, and threads per tile of it

template <typename T>
__device__ Box<T> box_at(const T* boxes, int64_t index) {
  const T* box = boxes + 4 * index;
  return {box[0], box[1], box[2], box[3]};
}

// mask[i][w]: which of the sorted boxes 64w … 64w + 63 come after box i and overlap it. Tiles below
// the diagonal are never written nor read.
template <typename T>
__global__ void overlap_mask_kernel(const T* boxes, const int64_t* order, int64_t count, int64_t words,
                                    T threshold, T offset, Word* mask) {
  __shared__ Box<T> columns[kWord];
  __shared__ T areas[kWord];
  const int thread = threadIdx.x;
  for (int64_t tile = blockIdx.x; tile < words * words; tile += gridDim.x) {
    const int64_t row_word = tile / words, column_word = tile % words;
    if (column_word < row_word) continue;  // the same for all threads: none waits alone below
    const int64_t first = column_word * kWord, row = row_word * kWord + thread;
    if (first + thread < count) {
      columns[thread] = box_at(boxes, order[first + thread]);
      areas[thread] = area_of(columns[thread], offset);
    }
    __syncthreads();
    if (row < count) {
      const Box<T> box = box_at(boxes, order[row]);
      const T area = area_of(box, offset);
      const int valid = int(count - first < kWord ? count - first : kWord);
      Word bits = 0;
      for (int j = row_word == column_word ? thread + 1 : 0; j < valid; ++j)
        if (overlaps(box, area, columns[j], areas[j], threshold, offset)) bits |= Word(1) << j;
      mask[row * words + column_word] = bits;
    }
    __syncthreads();
  }
}

constexpr int kKeepThreads = 512;  // at least one per box of a word

// Walks through the boxes by descending score, 64 at a time, in one block: what is kept depends on
// what was kept before. `removed` [words] begins as zeros.
__global__ void keep_kernel(const Word* mask, int64_t count, int64_t words, Word* removed, bool* keep) {
  __shared__ Word diagonal[kWord];
  __shared__ Word shared_kept;
  const int thread = threadIdx.x;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t first = word * kWord;
    const int valid = int(count - first < kWord ? count - first : kWord);
    if (thread < valid) diagonal[thread] = mask[(first + thread) * words + word];
    __syncthreads();
    if (thread == 0) {
      Word dead = removed[word], kept = 0;
      for (int bit = 0; bit < valid; ++bit) {
        if (dead >> bit & 1) continue;
        kept |= Word(1) << bit;
        dead |= diagonal[bit];
      }
      shared_kept = kept;
    }
    __syncthreads();
    const Word kept = shared_kept;
    if (thread < valid) keep[first + thread] = kept >> thread & 1;
    for (int64_t column = word + 1 + thread; column < words; column += blockDim.x) {
      Word bits = removed[column];
      for (Word rest = kept; rest != 0; rest &= rest - 1)
        bits |= mask[(first + __ffsll(static_cast<long long>(rest)) - 1) * words + column];
      removed[column] = bits;
    }
    __syncthreads();
  }
}

template <typename T>
void launch_overlap_mask(const Tensor& boxes, const Tensor& order, double threshold, int64_t offset,
                         int64_t words, const Tensor& mask) {
  const unsigned tiles = unsigned(std::min<int64_t>(words * words, 1 << 20));
  launch("overlap_mask_kernel", overlap_mask_kernel<T>, tiles, kWord, boxes, data_of<T>(boxes),
         data_of<int64_t>(order), boxes.size(0), words, T(threshold), T(offset), mutable_data_of<Word>(mask));
}

Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold, int64_t offset) {
  check_nms(boxes, scores, offset);
  const Tensor values = contiguous_boxes(boxes), order = descending_order(scores);
  const int64_t count = boxes.size(0), words = ceil_div(count, kWord);
  if (count == 0) return order;
  const Tensor mask = torch::stable::new_empty(order, {count, words});
  const Tensor removed = torch::stable::new_zeros(order, {words});
  const Tensor keep = torch::stable::new_empty(order, {count}, ScalarType::Bool);
  if (values.scalar_type() == ScalarType::Double)
    launch_overlap_mask<double>(values, order, iou_threshold, offset, words, mask);
  else
    launch_overlap_mask<float>(values, order, iou_threshold, offset, words, mask);
  launch("keep_kernel", keep_kernel, 1, kKeepThreads, boxes, data_of<Word>(mask), count, words,
         mutable_data_of<Word>(removed), mutable_data_of<bool>(keep));
  return call_operator<1>("aten::masked_select", "", order, keep)[0];
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) { m.impl("nms", TORCH_BOX(&dcnzoo::nms_cuda)); }
