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
// ones. Writes the kept elements of `order` to the start of `kept` [count], and their number. `removed` [words] must be
// zero at the start. A template, so that files that include it share one definition.
template <typename Bits>
__global__ void keep_kernel(const Bits* __restrict__ mask, const int64_t* __restrict__ order, int64_t count,
                            int64_t words, Bits* removed, int64_t* kept, int64_t* number) {
  __shared__ Bits diagonal[kWord];
  __shared__ Bits shared_alive;
  const int thread = threadIdx.x;
  int64_t found = 0;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t first = word * kWord;
    const int valid = int(count - first < kWord ? count - first : kWord);
    if (thread < valid) diagonal[thread] = mask[(first + thread) * words + word];
    __syncthreads();
    if (thread == 0) {
      Bits dead = removed[word], alive = 0;
      for (int bit = 0; bit < valid; ++bit) {
        if (dead >> bit & 1) continue;
        alive |= Bits(1) << bit;
        dead |= diagonal[bit];
      }
      shared_alive = alive;
    }
    __syncthreads();
    const Bits alive = shared_alive;
    if (thread < valid && (alive >> thread & 1))
      kept[found + __popcll(alive & ((Bits(1) << thread) - 1))] = order[first + thread];
    found += __popcll(alive);
    for (int64_t column = word + 1 + thread; column < words; column += blockDim.x) {
      Bits bits = removed[column];
      for (Bits rest = alive; rest != 0; rest &= rest - 1)
        bits |= mask[(first + __ffsll(static_cast<long long>(rest)) - 1) * words + column];
      removed[column] = bits;
    }
    __syncthreads();
  }
  if (thread == 0) *number = found;
}

// Returns the elements of `order` [count], box indices by descending score, that are kept. Their number determines the
// result's size: reading it is the only synchronisation with the GPU.
template <typename Boxes>
Tensor suppress_in_order(const Boxes& boxes, const Tensor& order) {
  const int64_t count = order.size(0), words = ceil_div(count, kWord);
  if (count == 0) return order;
  const Tensor mask = torch::stable::new_empty(order, {count, words});
  const Tensor removed = torch::stable::new_zeros(order, {words});
  Tensor kept = torch::stable::new_empty(order, {count});
  const Tensor number = torch::stable::new_empty(order, {});
  const unsigned tiles = unsigned(std::min<int64_t>(words * words, 1 << 20));
  launch("overlap_mask_kernel", overlap_mask_kernel<Boxes>, tiles, kWord, order, boxes, count, words,
         mutable_data_of<Word>(mask));
  launch("keep_kernel", keep_kernel<Word>, 1, kKeepThreads, order, data_of<Word>(mask),
         data_of<int64_t>(order), count, words, mutable_data_of<Word>(removed),
         mutable_data_of<int64_t>(kept), mutable_data_of<int64_t>(number));
  int64_t found = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_item_int64(number.get(), &found));
  return torch::stable::narrow(kept, 0, 0, found);
}

}  // namespace dcnzoo
