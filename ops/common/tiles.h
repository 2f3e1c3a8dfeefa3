// gemm.h's product of bfloat16 on the matrix unit of Intel's CPUs (AMX). Included by gemm.h only.
//
// The unit has eight tiles of up to 16 rows of 64 bytes. Tiles 0 to 3 hold sums, 32 rows × 32 columns; 4 and 5 hold 16 rows
// each of the left operand, 6 and 7 hold 16 columns each of the right one.
#pragma once

#include <cstring>

#include "integers.h"
#include "simd.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

constexpr int64_t kTileRows = 16, kTileBytes = 64;
// The number of tiles in a stretch of k: a panel of the right operand then takes 36 KiB and stays in the L1 cache, if tiles of
// the left operand are loaded without a copy there. Up to kTilesOfBoth, both operands fit.
constexpr int64_t kTileStretch = 18, kTilesOfBoth = 12;

// The sizes of the tiles, as the instruction ldtilecfg reads them
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  // For blocks of `upper` + `lower` rows and products of `step` k. A tile without rows must not have columns.
  TileConfig(int64_t upper, int64_t lower, int64_t step) {
    const int64_t rows_of[8] = {upper, upper, lower, lower, upper, lower, step / 2, step / 2};
    for (int i = 0; i < 8; ++i) {
      const int64_t bytes = i == 4 || i == 5 ? step * int64_t(sizeof(uint16_t)) : kTileBytes;
      rows[i] = uint8_t(rows_of[i]);
      row_bytes[i] = uint16_t(rows_of[i] == 0 ? 0 : bytes);
    }
  }
};

#if defined(DCNZOO_TILES)  // a test's class of the same name, for CPUs without AMX
#include DCNZOO_TILES
#else
// The tiles of the CPU. They are written in assembly, because GCC 12's intrinsics do not declare the memory that they
// read, so that the compiler moves stores behind them.
class CpuTiles {
 public:
  explicit CpuTiles(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
  CpuTiles(const CpuTiles&) = delete;
  ~CpuTiles() { asm volatile("tilerelease"); }  // the system then saves less at a change of threads

  template <int tile>
  void clear() {
    asm volatile("tilezero %%tmm%c0" : : "i"(tile));
  }
  // once: without a copy in the L1 cache
  template <int tile, typename E>
  void load(const E* from, int64_t stride, bool once = false) {
    const int64_t bytes = stride * int64_t(sizeof(E));
    if (once)
      asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(bytes), "i"(tile) : "memory");
    else
      asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(bytes), "i"(tile) : "memory");
  }
  template <int tile>
  void store(float* to, int64_t stride) {
    const int64_t bytes = stride * int64_t(sizeof(float));
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(bytes), "i"(tile) : "memory");
  }
  template <int sums, int left, int right>
  void add_product() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(left), "i"(right));
  }
};
#endif

// Adds k in [begin, end) to a block of sums. lower, right: whether it has more than 16 rows, and more than 16 columns.
template <bool lower, bool right, typename Left>
void multiply_tiles(CpuTiles& tiles, const Left& a, int64_t row, const uint16_t* b, int64_t begin,
                    int64_t end, int64_t step, float* c, int64_t c_stride, bool accumulate) {
  constexpr int64_t b_stride = 2 * kNR<uint16_t>;  // of a pair of rows
  // Local variables, because the compiler would read members again after every load of a tile.
  const int64_t a_stride = a.row_stride, block_size = a.block, block_stride = a.block_stride;
  float* const c_lower = c + kTileRows * c_stride;
  const bool once = end - begin > kTilesOfBoth * step;
  if (accumulate) {
    tiles.load<0>(c, c_stride);
    if (right) tiles.load<1>(c + kTileRows, c_stride);
    if (lower) tiles.load<2>(c_lower, c_stride);
    if (lower && right) tiles.load<3>(c_lower + kTileRows, c_stride);
  } else {
    tiles.clear<0>();
    if (right) tiles.clear<1>();
    if (lower) tiles.clear<2>();
    if (lower && right) tiles.clear<3>();
  }
  const uint16_t* a_block = a.data + row * a_stride + begin / block_size * block_stride;
  int64_t inner = begin % block_size;
  b += begin * kNR<uint16_t>;
  for (int64_t k = begin; k < end; k += step, b += step * kNR<uint16_t>) {
    tiles.load<4>(a_block + inner, a_stride, once);
    tiles.load<6>(b, b_stride);
    if (right) tiles.load<7>(b + 2 * kTileRows, b_stride);
    if (lower) tiles.load<5>(a_block + inner + kTileRows * a_stride, a_stride, once);
    tiles.add_product<0, 4, 6>();
    if (right) tiles.add_product<1, 4, 7>();
    if (lower) tiles.add_product<2, 5, 6>();
    if (lower && right) tiles.add_product<3, 5, 7>();
    inner += step;
    if (inner == block_size) inner = 0, a_block += block_stride;
  }
  tiles.store<0>(c, c_stride);
  if (right) tiles.store<1>(c + kTileRows, c_stride);
  if (lower) tiles.store<2>(c_lower, c_stride);
  if (lower && right) tiles.store<3>(c_lower + kTileRows, c_stride);
}

// Computes the same as gemm. a.block is a multiple of a tile's depth or, if smaller, the depth of all tiles. The padding of
// operands must be zero, because 0 × NaN is not 0.
template <typename Left>
void gemm_of_tiles(const Left& a, int64_t rows, const uint16_t* b, int64_t depth, int64_t columns, float* c,
                   int64_t c_row_stride, int64_t c_panel_stride, bool accumulate) {
  constexpr int64_t most = kDepthStep<float, uint16_t>, panel = kNR<uint16_t>, block = 2 * kTileRows;
  const int64_t step = a.block < most ? a.block : most, stretch = kTileStretch * step;
  for (int64_t first = 0, last; first < rows; first = last) {  // all whole blocks, then the rest
    const int64_t size = rows - first < block ? rows - first : block;
    const int64_t upper = size < kTileRows ? size : kTileRows, lower = size - upper;
    last = size < block ? rows : rows / block * block;
    CpuTiles tiles(TileConfig(upper, lower, step));
    for (int64_t j = 0; j * panel < columns; ++j) {
      const bool right = columns - j * panel > panel / 2;
      const auto multiply = lower
                                ? right ? multiply_tiles<true, true, Left> : multiply_tiles<true, false, Left>
                            : right ? multiply_tiles<false, true, Left>
                                    : multiply_tiles<false, false, Left>;
      for (int64_t k = 0; k < depth; k += stretch) {
        const int64_t end = k + stretch < depth ? k + stretch : depth;
        for (int64_t row = first; row < last; row += block)
          multiply(tiles, a, row, b + j * depth * panel, k, end, step,
                   c + j * c_panel_stride + row * c_row_stride, c_row_stride, accumulate || k > 0);
      }
    }
  }
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
