// Greedy non-maximum suppression on CUDA, for any type of box: first one bit per pair of boxes, then a sequential pass
// over the bits in one block.
#pragma once

#include "dispatch.cuh"
#include "launch.cuh"

namespace dcnzoo {

using Word = unsigned long long;
constexpr int kWord = 64;  // boxes per word of the bit mask, and threads per tile of it

// mask[i][w]: the sorted boxes 64w … 64w + 63 that come after box i and overlap it. Tiles below the diagonal are
// neither written nor read.
// Boxes: at(i) returns the i-th box by descending score as an Entry; overlap(a, b), whether a suppresses b.
template <typename Boxes>
__global__ void overlap_mask_kernel(Boxes boxes, int64_t count, int64_t words, Word* mask) {
  __shared__ typename Boxes::Entry columns[kWord];
  const int thread = threadIdx.x;
  for (int64_t tile = blockIdx.x; tile < words * words; tile += gridDim.x) {
    const int64_t row_word = tile / words, column_word = tile % words;
    if (column_word < row_word) continue;  // uniform in the block, as __syncthreads requires
    const int64_t first = column_word * kWord, row = row_word * kWord + thread;
    if (first + thread < count) columns[thread] = boxes.at(first + thread);
    __syncthreads();
    if (row < count) {
      const typename Boxes::Entry box = boxes.at(row);
      const int valid = int(count - first < kWord ? count - first : kWord);
      Word bits = 0;
      for (int j = row_word == column_word ? thread + 1 : 0; j < valid; ++j)
        if (boxes.overlap(box, columns[j])) bits |= Word(1) << j;
      mask[row * words + column_word] = bits;
    }
    __syncthreads();
  }
}

constexpr int kKeepThreads = 512;  // at least one per box of a word

// Processes the boxes by descending score, 64 at a time, in one block, because each decision depends on the earlier
// ones. `removed` [words] must be zero at the start. A template, so that files that include it share one definition.
template <typename Bits>
__global__ void keep_kernel(const Bits* mask, int64_t count, int64_t words, Bits* removed, bool* keep) {
  __shared__ Bits diagonal[kWord];
  __shared__ Bits shared_kept;
  const int thread = threadIdx.x;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t first = word * kWord;
    const int valid = int(count - first < kWord ? count - first : kWord);
    if (thread < valid) diagonal[thread] = mask[(first + thread) * words + word];
    __syncthreads();
    if (thread == 0) {
      Bits dead = removed[word], kept = 0;
      for (int bit = 0; bit < valid; ++bit) {
        if (dead >> bit & 1) continue;
        kept |= Bits(1) << bit;
        dead |= diagonal[bit];
      }
      shared_kept = kept;
    }
    __syncthreads();
    const Bits kept = shared_kept;
    if (thread < valid) keep[first + thread] = kept >> thread & 1;
    for (int64_t column = word + 1 + thread; column < words; column += blockDim.x) {
      Bits bits = removed[column];
      for (Bits rest = kept; rest != 0; rest &= rest - 1)
        bits |= mask[(first + __ffsll(static_cast<long long>(rest)) - 1) * words + column];
      removed[column] = bits;
    }
    __syncthreads();
  }
}

// Returns the elements of `order` [count], box indices by descending score, that are kept.
template <typename Boxes>
Tensor suppress_in_order(const Boxes& boxes, const Tensor& order) {
  const int64_t count = order.size(0), words = ceil_div(count, kWord);
  if (count == 0) return order;
  const Tensor mask = torch::stable::new_empty(order, {count, words});
  const Tensor removed = torch::stable::new_zeros(order, {words});
  const Tensor keep = torch::stable::new_empty(order, {count}, ScalarType::Bool);
  const unsigned tiles = unsigned(std::min<int64_t>(words * words, 1 << 20));
  launch("overlap_mask_kernel", overlap_mask_kernel<Boxes>, tiles, kWord, order, boxes, count, words,
         mutable_data_of<Word>(mask));
  launch("keep_kernel", keep_kernel<Word>, 1, kKeepThreads, order, data_of<Word>(mask), count, words,
         mutable_data_of<Word>(removed), mutable_data_of<bool>(keep));
  return call_operator<1>("aten::masked_select", "", order, keep)[0];
}

}  // namespace dcnzoo
