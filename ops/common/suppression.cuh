// Greedy suppression on CUDA, whatever the boxes are: a bit per pair, then one block that walks through them.
#pragma once

#include "dispatch.cuh"
#include "launch.cuh"

namespace dcnzoo {

using Word = unsigned long long;
constexpr int kWord = 64;  // boxes per word of the bit mask, and threads per tile of it

// mask[i][w]: which of the sorted boxes 64w … 64w + 63 come after box i and overlap it. Tiles below
// the diagonal are never written nor read.
// Boxes: at(i), the i-th box by descending score, of a type Entry; overlap(a, b), whether a suppresses b.
template <typename Boxes>
__global__ void overlap_mask_kernel(Boxes boxes, int64_t count, int64_t words, Word* mask) {
  __shared__ typename Boxes::Entry columns[kWord];
  const int thread = threadIdx.x;
  for (int64_t tile = blockIdx.x; tile < words * words; tile += gridDim.x) {
    const int64_t row_word = tile / words, column_word = tile % words;
    if (column_word < row_word) continue;  // the same for all threads: none waits alone below
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

// Walks through the boxes by descending score, 64 at a time, in one block: what is kept depends on
// what was kept before. `removed` [words] begins as zeros. A template, to be one function in all files.
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

// The elements of `order` [count], by descending score, of the boxes that are kept.
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
