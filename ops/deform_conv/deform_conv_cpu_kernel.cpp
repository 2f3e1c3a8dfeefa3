// Deformable convolution on the CPU: see docs/performance.md for the picture.
//
// Output pixels are taken in tiles. For a tile and a slice of channels the kernel plans where to read
// (vectorised over pixels), samples (vectorised over channels) into a panel of columns that stays in
// the second-level cache, and multiplies it by the packed weight. The backward multiplies first and then
// samples again, turning the columns' gradient into the columns in place.
#include "deform_conv_cpu_kernel.h"

#include <cstring>
#include <type_traits>

#include "../common/gemm.h"
#include "../common/corners_simd.h"

namespace dcnzoo {
namespace DCNZOO_CPU_NAMESPACE {
namespace {

// Hands out pieces of a thread's scratch memory, each on a cache line of its own.
struct Arena {
  char* next;
  template <typename T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next);
    next += round_up(count * int64_t(sizeof(T)), 64);
    return piece;
  }
};

template <int Rank>
constexpr int kCorners = 1 << Rank;

// Where the taps of a tile read. Every array is [tap][…][row], row running over the tile.
template <typename T, int Rank, bool Backward>
struct SamplingTable {
  using Index = typename IndexOf<T>::type;
  Index* index;  // [tap][corner][row] pixel, as StoredCorners
  T* weight;     // [tap][corner][row]; forward: times the factor, backward: without
  T* slope;      // [tap][axis · corners + corner][row]; backward only
  T* factor;     // [tap][row] the mask where it is finite, else 1; backward only
  T* rest;       // [tap][row] 1 where the mask is finite, else the mask

  static SamplingTable allocate(Arena& arena, int64_t taps, int64_t rows) {
    SamplingTable table{};
    table.index = arena.take<Index>(taps * kCorners<Rank> * rows);
    table.weight = arena.take<T>(taps * kCorners<Rank> * rows);
    table.rest = arena.take<T>(taps * rows);
    if (Backward) {
      table.slope = arena.take<T>(taps * Rank * kCorners<Rank> * rows);
      table.factor = arena.take<T>(taps * rows);
    }
    return table;
  }
};

// The rows of a tile: which image and pixel each is, and where its taps start.
template <typename T, typename S, int Rank>
struct Rows {
  int64_t count, stride;  // stride: rows of a full tile
  int64_t image, pixel;   // of the first row
  T* base[Rank];          // out · stride - padding, per row
  int64_t* map;           // where the row's image begins in input, and so in its gradient
  T *zeros, *ones;        // stand in for an absent offset and mask

  static Rows allocate(Arena& arena, int64_t rows) {
    Rows result{};
    result.stride = rows;
    for (int axis = 0; axis < Rank; ++axis) result.base[axis] = arena.take<T>(rows);
    result.map = arena.take<int64_t>(rows);
    result.zeros = arena.take<T>(rows);
    result.ones = arena.take<T>(rows);
    return result;
  }

  void set(const DeformConvParams<T, S>& p, int64_t first, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) zeros[r] = T(0), ones[r] = T(1);
    count = rows;
    image = first / p.out_pixels;
    pixel = first % p.out_pixels;
    int64_t position[Rank];
    int64_t rest = pixel;
    for (int axis = Rank - 1; axis >= 0; --axis) {
      position[axis] = rest % p.out[axis];
      rest /= p.out[axis];
    }
    const int64_t map_size = p.in_pixels * p.input_channels;
    int64_t place = (image - p.first_image) * map_size;
    for (int64_t r = 0; r < rows; ++r) {
      for (int axis = 0; axis < Rank; ++axis)
        base[axis][r] = T(position[axis] * p.stride[axis] - p.padding[axis]);
      map[r] = place;
      int axis = Rank - 1;
      while (axis >= 0 && ++position[axis] == p.out[axis]) position[axis--] = 0;
      if (axis < 0) place += map_size;
    }
  }

  // Calls run(row_begin, row_end, image, pixel) for each stretch of rows within one image.
  template <typename Run>
  void each_image(int64_t out_pixels, Run run) const {
    int64_t n = image, p = pixel;
    for (int64_t r = 0; r < count; p = 0, ++n) {
      const int64_t end = count - r < out_pixels - p ? count : r + out_pixels - p;
      run(r, end, n, p);
      r = end;
    }
  }
};

// One tap of a stretch of rows: where it reads and where its part of the table goes.
template <typename T, int Rank, bool Backward>
struct TapSampling {
  using Index = typename IndexOf<T>::type;
  Index size[Rank];
  T extent[Rank], shift[Rank];
  const T *base[Rank], *offset[Rank], *mask;
  int64_t stride;
  Index* index;
  T *weight, *slope, *factor, *rest;

  // Rows r, r+1, … of as many as Value has lanes (a scalar has one).
  template <typename Value, typename IndexValue>
  DCNZOO_INLINE void at(int64_t r) const {
    constexpr int corners = kCorners<Rank>;
    using On = VecTraitsOf<Value>;
    const auto read = [r](const T* from) { return load_lanes<Value>(from + r); };
    const auto write = [r](auto* to, auto value) { store_lanes(to + r, value); };
    Value point[Rank];
    for (int axis = 0; axis < Rank; ++axis) point[axis] = read(base[axis]) + shift[axis] + read(offset[axis]);
    const auto found = corners_at<Value, IndexValue, Rank, On>(point, extent, size);
    const auto stored = store_corners<Value, IndexValue, Rank>(found, read(mask));
    for (int corner = 0; corner < corners; ++corner) {
      const Value share = found.valid[corner] * corner_weight<Value, Rank>(corner, found.fraction);
      write(index + corner * stride, stored.index[corner]);
      write(weight + corner * stride, Backward ? share : share * stored.factor);
      if (Backward) {
        for (int axis = 0; axis < Rank; ++axis) {
          const Value steepness =
              found.valid[corner] * corner_slope<Value, Rank>(corner, axis, found.fraction);
          write(slope + (axis * corners + corner) * stride, steepness);
        }
      }
    }
    if (Backward) write(factor, stored.factor);
    write(rest, stored.rest);
  }

  void run(int64_t count) const {
    int64_t r = 0;
    for (; r + kLanes<T> <= count; r += kLanes<T>) at<Vector<T>, Vector<Index>>(r);
    for (; r < count; ++r) at<T, Index>(r);
  }
};

template <typename T, typename S, int Rank, bool Backward>
void compute_sampling_table(const DeformConvParams<T, S>& p, const ChannelSlice& slice,
                            const Rows<T, S, Rank>& rows, SamplingTable<T, Rank, Backward>& table) {
  constexpr int corners = kCorners<Rank>;
  using Tap = TapSampling<T, Rank, Backward>;
  rows.each_image(p.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
    for (int64_t tap = 0; tap < p.taps; ++tap) {
      Tap part;
      int64_t rest = tap;
      for (int axis = Rank - 1; axis >= 0; --axis) {
        part.size[axis] = static_cast<typename Tap::Index>(p.in[axis]);
        part.extent[axis] = T(p.in[axis]);
        part.shift[axis] = T((rest % p.kernel[axis]) * p.dilation[axis]);
        rest /= p.kernel[axis];
        part.base[axis] = rows.base[axis] + begin;
        const int64_t channel =
            (image * p.offset_groups + slice.offset_group) * p.taps * Rank + tap * Rank + axis;
        part.offset[axis] = p.offset ? p.offset + channel * p.out_pixels + pixel : rows.zeros;
      }
      const int64_t channel = (image * p.mask_groups + slice.mask_group) * p.taps + tap;
      part.mask = p.mask ? p.mask + channel * p.out_pixels + pixel : rows.ones;
      part.stride = rows.stride;
      part.index = table.index + tap * corners * rows.stride + begin;
      part.weight = table.weight + tap * corners * rows.stride + begin;
      part.rest = table.rest + tap * rows.stride + begin;
      if (Backward) {
        part.slope = table.slope + tap * Rank * corners * rows.stride + begin;
        part.factor = table.factor + tap * rows.stride + begin;
      }
      part.run(end - begin);
    }
  });
}

// From one panel of a tile's columns to the next. The odd row keeps the panels' rows from falling into
// the same set of the first-level cache.
template <typename T, typename S>
DCNZOO_INLINE int64_t panel_stride(const DeformConvParams<T, S>& p) {
  return (p.tile_rows + 1) * kPanel<T>;
}

template <typename T, typename S>
DCNZOO_INLINE int64_t columns_size(const DeformConvParams<T, S>& p, int64_t depth) {
  return depth / kPanel<T> * panel_stride(p);
}

// Walks the columns of one (row, tap) of a slice: whole vectors where the channel count allows, else
// single elements. `vector(channel, column)` and `element(channel, column)` get the offset of their
// column within the tile's panels.
template <typename T, typename OnVector, typename OnElement>
DCNZOO_INLINE void each_column(int64_t tap, int64_t channels, int64_t row, int64_t stride, OnVector vector,
                               OnElement element) {
  constexpr int lanes = kLanes<T>, panel = kPanel<T>;
  int64_t column = tap * channels;
  if (channels % panel == 0) {
    int64_t at = column / panel * stride + row * panel;
    for (int64_t c = 0; c < channels; c += panel, at += stride) {
      vector(c, at);
      vector(c + lanes, at + lanes);
    }
  } else if (channels % lanes == 0) {
    for (int64_t c = 0; c < channels; c += lanes, column += lanes)
      vector(c, column / panel * stride + row * panel + column % panel);
  } else {
    for (int64_t c = 0; c < channels; ++c, ++column)
      element(c, column / panel * stride + row * panel + column % panel);
  }
}

template <typename T, typename S>
void zero_padding_columns(const DeformConvParams<T, S>& p, const ChannelSlice& slice, S* columns) {
  for (int64_t column = p.taps * slice.count; column < slice.depth; ++column) {
    S* at = columns + column / kPanel<T> * panel_stride(p) + column % kPanel<T>;
    for (int64_t r = 0; r < p.tile_rows; ++r) at[r * kPanel<T>] = 0;
  }
}

template <typename T, typename S, int Rank>
void sample(const DeformConvParams<T, S>& p, const ChannelSlice& slice, const Rows<T, S, Rank>& rows,
            const SamplingTable<T, Rank, false>& table, S* columns) {
  constexpr int corners = kCorners<Rank>;
  const int64_t stride = panel_stride(p);
  for (int64_t r = 0; r < rows.count; ++r) {
    const S* map = p.input + rows.map[r] + slice.first - p.first_channel;
    for (int64_t tap = 0; tap < p.taps; ++tap) {
      const int64_t first = tap * corners * rows.stride + r;
      if (table.index[first] >= 0) {
        const S* from[corners];
        T weight[corners];
        for (int corner = 0; corner < corners; ++corner) {
          const int64_t at = first + corner * rows.stride;
          from[corner] = map + int64_t(table.index[at]) * p.input_channels;
          weight[corner] = table.weight[at];
        }
        each_column<S>(
            tap, slice.count, r, stride,
            [&](int64_t c, int64_t at) {
              Vector<T> value = weight[0] * widened(load(from[0] + c));
              for (int corner = 1; corner < corners; ++corner)
                value += weight[corner] * widened(load(from[corner] + c));
              store<S>(columns + at, narrowed<S>(value));
            },
            [&](int64_t c, int64_t at) {
              T value = weight[0] * widened(from[0][c]);
              for (int corner = 1; corner < corners; ++corner)
                value += weight[corner] * widened(from[corner][c]);
              columns[at] = narrowed<S>(value);
            });
      } else {
        const InsideCorners<corners> inside([&](int c) { return table.index[first + c * rows.stride]; });
        const T rest = table.rest[tap * rows.stride + r];
        const S* from[corners];
        T weight[corners];
        for (int i = 0; i < inside.count; ++i) {
          from[i] = map + inside.index[i] * p.input_channels;
          weight[i] = table.weight[first + inside.corner[i] * rows.stride];
        }
        each_column<S>(
            tap, slice.count, r, stride,
            [&](int64_t c, int64_t at) {
              Vector<T> value{};
              for (int i = 0; i < inside.count; ++i) value += weight[i] * widened(load(from[i] + c));
              store<S>(columns + at, narrowed<S>(value * rest));
            },
            [&](int64_t c, int64_t at) {
              T value = 0;
              for (int i = 0; i < inside.count; ++i) value += weight[i] * widened(from[i][c]);
              columns[at] = narrowed<S>(value * rest);
            });
      }
    }
  }
}

// A group's sums over the slices of an earlier pass, back into the tile. (Only S = T has several passes.)
template <typename T, typename S, int Rank>
void load_group(const DeformConvParams<T, S>& p, const ChannelSlice& slice, const Rows<T, S, Rank>& rows,
                T* result) {
  const int64_t padded = p.padded_outputs;
  if constexpr (std::is_same_v<S, T>)
    rows.each_image(p.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
      const T* from = p.output + (image * p.out_channels + slice.first_output) * p.out_pixels + pixel;
      transpose(from, p.out_pixels, result + begin * padded, padded, slice.outputs, end - begin);
    });
}

template <typename T, typename S, int Rank>
void store_group(const DeformConvParams<T, S>& p, const ChannelSlice& slice, const Rows<T, S, Rank>& rows,
                 T* result, T* turned) {
  const int64_t first = slice.first_output, outputs = slice.outputs, padded = p.padded_outputs;
  if (p.bias && slice.closes_group) {
    const T* bias = p.bias + first;
    for (int64_t r = 0; r < rows.count; ++r) {
      T* __restrict row = result + r * padded;
      for (int64_t o = 0; o < outputs; ++o) row[o] += bias[o];
    }
  }
  const auto copy = [](const T* __restrict from, S* __restrict to, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) store<S>(to + i, narrowed<S>(load(from + i)));
    for (; i < count; ++i) to[i] = narrowed<S>(from[i]);
  };
  rows.each_image(p.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
    if (p.output_channels_last) {
      for (int64_t r = begin; r < end; ++r)
        copy(result + r * padded,
             p.output + (image * p.out_pixels + pixel + r - begin) * p.out_channels + first, outputs);
      return;
    }
    S* to = p.output + (image * p.out_channels + first) * p.out_pixels + pixel;
    if constexpr (std::is_same_v<S, T>) {
      transpose(result + begin * padded, padded, to, p.out_pixels, end - begin, outputs);
    } else {
      transpose(result + begin * padded, padded, turned, p.tile_rows, end - begin, outputs);
      for (int64_t o = 0; o < outputs; ++o)
        copy(turned + o * p.tile_rows, to + o * p.out_pixels, end - begin);
    }
  });
}

template <typename T, typename S, int Rank>
struct ForwardScratch {
  Rows<T, S, Rank> rows;
  SamplingTable<T, Rank, false> table;
  S* columns;  // panels of [row][kPanel]
  T* result;   // of a group: [row][outputs, padded to whole panels]
  T* turned;   // the same as [output][row], on its way to a narrower type

  ForwardScratch(Arena& arena, const DeformConvParams<T, S>& p)
      : rows(Rows<T, S, Rank>::allocate(arena, p.tile_rows)),
        table(SamplingTable<T, Rank, false>::allocate(arena, p.taps, p.tile_rows)),
        columns(arena.take<S>(columns_size(p, p.most_depth))),
        result(arena.take<T>(p.padded_outputs * p.tile_rows)),
        turned(arena.take<T>(sizeof(S) == sizeof(T) ? 0 : p.padded_outputs * p.tile_rows)) {}
};

// The products of a depthwise convolution: a channel by its own weights, which are [tap][channel of the
// slice]. The result and the output's gradient are [row][channel], `stride` apart.
template <typename T, typename S>
void multiply_depthwise(const DeformConvParams<T, S>& p, const ChannelSlice& slice, int64_t rows,
                        const S* columns, const S* weight, T* result, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    T* const row = result + r * stride;
    for (int64_t c = 0; c < slice.count; ++c) row[c] = 0;
    for (int64_t tap = 0; tap < p.taps; ++tap) {
      const S* const by = weight + tap * slice.count;
      each_column<S>(
          tap, slice.count, r, panel_stride(p),
          [&](int64_t c, int64_t at) {
            store(row + c, load(row + c) + widened(load(columns + at)) * widened(load(by + c)));
          },
          [&](int64_t c, int64_t at) { row[c] += widened(columns[at]) * widened(by[c]); });
    }
  }
}

template <typename T>
void spread_depthwise(const DeformConvParams<T>& p, const ChannelSlice& slice, int64_t rows,
                      const T* gradient, int64_t stride, const T* weight, T* columns) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* const row = gradient + r * stride;
    for (int64_t tap = 0; tap < p.taps; ++tap) {
      const T* const by = weight + tap * slice.count;
      each_column<T>(
          tap, slice.count, r, panel_stride(p),
          [&](int64_t c, int64_t at) { store(columns + at, load(row + c) * load(by + c)); },
          [&](int64_t c, int64_t at) { columns[at] = row[c] * by[c]; });
    }
  }
}

template <typename T>
void weight_gradient_depthwise(const DeformConvParams<T>& p, const ChannelSlice& slice, int64_t rows,
                               const T* gradient, int64_t stride, const T* columns, T* grad_weight) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* const row = gradient + r * stride;
    for (int64_t tap = 0; tap < p.taps; ++tap) {
      T* const to = grad_weight + tap * slice.count;
      each_column<T>(
          tap, slice.count, r, panel_stride(p),
          [&](int64_t c, int64_t at) { store(to + c, load(to + c) + load(row + c) * load(columns + at)); },
          [&](int64_t c, int64_t at) { to[c] += row[c] * columns[at]; });
    }
  }
}

// The slice's part of the result, group by group. A group is written in whole panels, zeros behind its
// outputs; the next one's outputs take their place.
template <typename T, typename S>
void multiply_groups(const DeformConvParams<T, S>& p, const ChannelSlice& slice, int64_t rows,
                     const S* columns, T* result) {
  constexpr int64_t panel = kPanel<S>;
  const int64_t stride = panel_stride(p), channels = slice.count / slice.groups;
  const int64_t outputs = slice.outputs / slice.groups, depth = slice.depth / slice.groups;
  const int64_t panels = ceil_div(outputs, panel);
  // a group alone has all columns; several have their channels of each tap
  const int64_t block = slice.groups == 1 ? panel : channels;
  const int64_t block_stride = slice.groups == 1 ? stride : slice.count / panel * stride;
  for (int64_t group = 0; group < slice.groups; ++group) {
    const int64_t column = group * channels;
    const LeftOperand<S> left{columns + column / panel * stride + column % panel, panel, 1, block,
                              block_stride};
    multiply<T, S>(left, rows, p.weight + slice.weight + group * depth * panels * panel, depth, panels,
                   result + group * outputs, p.padded_outputs, kPanel<T>, !slice.opens_group);
  }
}

template <typename T, typename S, int Rank>
void forward_of(const DeformConvParams<T, S>& p, int64_t index, char* scratch) {
  Arena arena{scratch};
  ForwardScratch<T, S, Rank> tile(arena, p);
  const int64_t padded = p.padded_outputs, all_rows = p.images * p.out_pixels;
  const int64_t first = index * p.tile_rows;
  tile.rows.set(p, first, all_rows - first < p.tile_rows ? all_rows - first : p.tile_rows);
  const ChannelSlice* tabulated = nullptr;
  for (int64_t s = p.slice_begin; s < p.slice_end; ++s) {
    const ChannelSlice& slice = p.slices[s];
    if (tabulated == nullptr || tabulated->offset_group != slice.offset_group ||
        tabulated->mask_group != slice.mask_group) {
      compute_sampling_table<T, S, Rank, false>(p, slice, tile.rows, tile.table);
      tabulated = &slice;
    }
    sample<T, S, Rank>(p, slice, tile.rows, tile.table, tile.columns);
    zero_padding_columns(p, slice, tile.columns);
    if (s == p.slice_begin && !slice.opens_group) load_group<T, S, Rank>(p, slice, tile.rows, tile.result);
    if (p.depthwise) {
      multiply_depthwise<T, S>(p, slice, tile.rows.count, tile.columns, p.weight + slice.weight, tile.result,
                               padded);
    } else {
      multiply_groups<T, S>(p, slice, tile.rows.count, tile.columns, tile.result);
    }
    if (s + 1 == p.slice_end || slice.closes_group)
      store_group<T, S, Rank>(p, slice, tile.rows, tile.result, tile.turned);
  }
}

// Columns' gradient in, columns out (in place, where they are wanted). Adds to the input's gradient and
// writes the fields': [tap · rank + axis][row] of the offset, then [tap][row] of the mask.
template <typename T, int Rank, bool Input, bool Fields, bool Columns>
void sample_backward(const DeformConvParams<T>& p, const ChannelSlice& slice, const Rows<T, T, Rank>& rows,
                     const SamplingTable<T, Rank, true>& table, T* columns, T* fields) {
  constexpr int corners = kCorners<Rank>;
  constexpr bool reads_input = Fields || Columns;
  const int64_t stride = panel_stride(p);
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t map = rows.map[r] + slice.first - p.first_channel;
    for (int64_t tap = 0; tap < p.taps; ++tap) {
      const T* from[corners];
      T* to[corners];
      T weight[corners], modulated[corners];
      const T factor = table.factor[tap * rows.stride + r], rest = table.rest[tap * rows.stride + r];
      const int64_t first = tap * corners * rows.stride + r;
      bool inside = true;
      // Σ over channels of gradient · pixel, per corner
      Vector<T> dot[corners] = {};
      T dot_rest[corners] = {};
      if (table.index[first] >= 0) {
        for (int corner = 0; corner < corners; ++corner) {
          const int64_t at = first + corner * rows.stride;
          const int64_t place = map + int64_t(table.index[at]) * p.input_channels;
          if (reads_input) from[corner] = p.input + place;
          if (Input) to[corner] = p.grad_input + place;
          weight[corner] = table.weight[at];
          modulated[corner] = factor * weight[corner];
        }
        each_column<T>(
            tap, slice.count, r, stride,
            [&](int64_t c, int64_t at) {
              const Vector<T> gradient = load(columns + at);
              if (reads_input) {
                Vector<T> value{};
                for (int corner = 0; corner < corners; ++corner) {
                  const Vector<T> pixel = load(from[corner] + c);
                  if (Columns) value += modulated[corner] * pixel;
                  if (Fields) dot[corner] += gradient * pixel;
                }
                if (Columns) store(columns + at, value);
              }
              if (Input) {
                for (int corner = 0; corner < corners; ++corner)
                  store(to[corner] + c, load(to[corner] + c) + modulated[corner] * gradient);
              }
            },
            [&](int64_t c, int64_t at) {
              const T gradient = columns[at];
              T value = 0;
              for (int corner = 0; corner < corners; ++corner) {
                if (Columns) value += modulated[corner] * from[corner][c];
                if (Fields) dot_rest[corner] += gradient * from[corner][c];
                if (Input) to[corner][c] += modulated[corner] * gradient;
              }
              if (Columns) columns[at] = value;
            });
      } else {
        const InsideCorners<corners> found([&](int c) { return table.index[first + c * rows.stride]; });
        inside = found.count > 0;
        for (int corner = 0; corner < corners; ++corner)
          weight[corner] = table.weight[first + corner * rows.stride];
        for (int i = 0; i < found.count; ++i) {
          const int64_t place = map + found.index[i] * p.input_channels;
          if (reads_input) from[i] = p.input + place;
          if (Input) to[i] = p.grad_input + place;
          modulated[i] = factor * weight[found.corner[i]];
        }
        each_column<T>(
            tap, slice.count, r, stride,
            [&](int64_t c, int64_t at) {
              const Vector<T> gradient = load(columns + at);
              Vector<T> value{};
              for (int i = 0; i < found.count; ++i) {
                if (Columns) value += modulated[i] * load(from[i] + c);
                if (Fields) dot[found.corner[i]] += gradient * load(from[i] + c);
                if (Input) store(to[i] + c, load(to[i] + c) + modulated[i] * (gradient * rest));
              }
              if (Fields && !inside) dot[0] += gradient * T(0);
              if (Columns) store(columns + at, value * rest);
            },
            [&](int64_t c, int64_t at) {
              const T gradient = columns[at];
              T value = 0;
              for (int i = 0; i < found.count; ++i) {
                if (Columns) value += modulated[i] * from[i][c];
                if (Fields) dot_rest[found.corner[i]] += gradient * from[i][c];
                if (Input) to[i][c] += modulated[i] * (gradient * rest);
              }
              if (Fields && !inside) dot_rest[0] += gradient * T(0);
              if (Columns) columns[at] = value * rest;
            });
      }
      if (Fields) {
        T at_point[Rank + 1] = {};
        if (inside) {
          Vector<T> sums[Rank + 1] = {};
          for (int corner = 0; corner < corners; ++corner) {
            for (int axis = 0; axis < Rank; ++axis) {
              const T slope =
                  factor * rest * table.slope[((tap * Rank + axis) * corners + corner) * rows.stride + r];
              sums[axis] += slope * dot[corner];
              at_point[axis] += slope * dot_rest[corner];
            }
            sums[Rank] += weight[corner] * dot[corner];
            at_point[Rank] += weight[corner] * dot_rest[corner];
          }
          for (int field = 0; field <= Rank; ++field) at_point[field] += sum_lanes(sums[field]);
        } else {  // the mask's gradient is one with what was read, which is zero
          at_point[Rank] = dot_rest[0] + sum_lanes(dot[0]);
        }
        for (int axis = 0; axis < Rank; ++axis)
          fields[(tap * Rank + axis) * p.tile_rows + r] = at_point[axis];
        fields[(p.taps * Rank + tap) * p.tile_rows + r] = at_point[Rank];
      }
    }
  }
}

template <typename T, int Rank>
struct BackwardScratch {
  Rows<T, T, Rank> rows;
  SamplingTable<T, Rank, true> table;
  T* columns;   // panels of [row][kPanel]
  T* gradient;  // [output of the group][row]
  T* fields;    // [tap · (rank + 1)][row]

  BackwardScratch(Arena& arena, const DeformConvParams<T>& p)
      : rows(Rows<T, T, Rank>::allocate(arena, p.tile_rows)),
        table(SamplingTable<T, Rank, true>::allocate(arena, p.taps, p.tile_rows)),
        columns(arena.take<T>(columns_size(p, p.most_depth))),
        gradient(arena.take<T>(p.padded_outputs * p.tile_rows)),
        fields(arena.take<T>(p.taps * (Rank + 1) * p.tile_rows)) {}
};

// The output's gradient for the tile: of the slice's convolution group as [output][row], or, if depthwise,
// of its channels as [row][channel], padded_outputs apart.
template <typename T, int Rank>
void gather_gradient(const DeformConvParams<T>& p, const ChannelSlice& slice, const Rows<T, T, Rank>& rows,
                     T* gradient) {
  const int64_t outputs = slice.outputs, padded = p.padded_outputs;
  const bool last = p.grad_output_channels_last;
  rows.each_image(p.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
    const int64_t count = end - begin;
    const int64_t channels_last_at = (image * p.out_pixels + pixel) * p.out_channels + slice.first_output;
    const int64_t channels_first_at = (image * p.out_channels + slice.first_output) * p.out_pixels + pixel;
    const T* const from = p.grad_output + (last ? channels_last_at : channels_first_at);
    if (last && p.depthwise) {
      for (int64_t r = 0; r < count; ++r)
        std::memcpy(gradient + (begin + r) * padded, from + r * p.out_channels, outputs * sizeof(T));
    } else if (last) {
      transpose(from, p.out_channels, gradient + begin, p.tile_rows, count, outputs);
    } else if (p.depthwise) {
      transpose(from, p.out_pixels, gradient + begin * padded, padded, outputs, count);
    } else {
      for (int64_t o = 0; o < outputs; ++o)
        std::memcpy(gradient + o * p.tile_rows + begin, from + o * p.out_pixels, count * sizeof(T));
    }
  });
}

// A tile's gradients of offset and mask, to where they belong.
template <typename T, int Rank>
void store_fields(const DeformConvParams<T>& p, int64_t s, const Rows<T, T, Rank>& rows, const T* fields) {
  const ChannelSlice& slice = p.slices[s];
  const int64_t points = p.taps * Rank;
  rows.each_image(p.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
    for (int64_t field = 0; field < points + p.taps; ++field) {
      const bool of_mask = field >= points;
      if (!(of_mask ? p.grad_mask : p.grad_offset)) continue;
      T* to;
      if (slice.shares_points)
        to = p.grad_fields + ((s - p.slice_begin) * (points + p.taps) + field) * p.images * p.out_pixels +
             image * p.out_pixels;
      else if (of_mask)
        to = p.grad_mask +
             ((image * p.mask_groups + slice.mask_group) * p.taps + field - points) * p.out_pixels;
      else
        to = p.grad_offset + ((image * p.offset_groups + slice.offset_group) * points + field) * p.out_pixels;
      std::memcpy(to + pixel, fields + field * p.tile_rows + begin, (end - begin) * sizeof(T));
    }
  });
}

// The first of the slice's outputs that a panel of its columns contributes to, panel_outputs in all: a panel
// of several groups has the weights of all its outputs, zero between a group's channels and another's outputs.
template <typename T>
int64_t first_output_of(const ChannelSlice& slice, int64_t panel) {
  return slice.groups == 1 ? 0 : panel % (slice.count / kPanel<T>)*slice.panel_outputs;
}

// Whether a tile of gradients, [output][row], has neither Inf nor NaN.
template <typename T>
bool all_finite(const T* gradient, int64_t outputs, int64_t rows, int64_t stride) {
  Vector<T> sums{};  // x - x is zero, or NaN
  T rest = 0;
  for (int64_t o = 0; o < outputs; ++o, gradient += stride) {
    int64_t r = 0;
    for (; r + kLanes<T> <= rows; r += kLanes<T>) sums += load(gradient + r) - load(gradient + r);
    for (; r < rows; ++r) rest += gradient[r] - gradient[r];
  }
  return sum_lanes(sums) + rest == T(0);
}

// The gradient of a panel of columns of several groups, group by group. As one product, in which the weights
// between a group's channels and another's outputs are zero, Inf and NaN would reach the other groups.
template <typename T>
void multiply_panel_by_groups(const DeformConvParams<T>& p, const ChannelSlice& slice, int64_t rows,
                              const T* gradient, const T* weight, T* columns) {
  const int64_t channels = slice.count / slice.groups, outputs = slice.outputs / slice.groups;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t column = 0; column < kPanel<T>; ++column) {
      const int64_t first = column / channels * outputs;
      T sum = 0;
      for (int64_t o = first; o < first + outputs; ++o)
        sum += gradient[o * p.tile_rows + r] * weight[o * kPanel<T> + column];
      columns[r * kPanel<T> + column] = sum;
    }
}

template <typename T, int Rank>
void backward_of(const DeformConvParams<T>& p, int64_t s, int64_t begin, int64_t end, char* scratch) {
  Arena arena{scratch};
  BackwardScratch<T, Rank> tile(arena, p);
  const ChannelSlice& slice = p.slices[s];
  const int64_t outputs = slice.panel_outputs, panels = slice.depth / kPanel<T>;
  const int64_t padded = p.padded_outputs, stride = panel_stride(p);
  const bool fields = p.grad_offset || p.grad_mask, input = p.grad_input != nullptr;
  // [input][fields][columns, for the weight's gradient]
  static constexpr decltype(&sample_backward<T, Rank, true, true, true>) runs[2][2][2] = {
      {{nullptr, sample_backward<T, Rank, false, false, true>},
       {sample_backward<T, Rank, false, true, false>, sample_backward<T, Rank, false, true, true>}},
      {{sample_backward<T, Rank, true, false, false>, sample_backward<T, Rank, true, false, true>},
       {sample_backward<T, Rank, true, true, false>, sample_backward<T, Rank, true, true, true>}}};
  const auto run = runs[input][fields][p.grad_weight != nullptr];
  if (run == nullptr) return;
  for (int64_t first = begin * p.out_pixels; first < end * p.out_pixels; first += p.tile_rows) {
    const int64_t left = end * p.out_pixels - first;
    tile.rows.set(p, first, left < p.tile_rows ? left : p.tile_rows);
    const int64_t count = tile.rows.count;
    compute_sampling_table<T, T, Rank, true>(p, slice, tile.rows, tile.table);
    gather_gradient<T, Rank>(p, slice, tile.rows, tile.gradient);
    if (fields || input) {
      const T* const weight = p.weight_backward + slice.weight;
      if (p.depthwise) spread_depthwise<T>(p, slice, count, tile.gradient, padded, weight, tile.columns);
      const bool together = slice.groups == 1 || all_finite(tile.gradient, slice.outputs, count, p.tile_rows);
      for (int64_t panel = 0; panel < panels && !p.depthwise; ++panel) {
        const T* const from = tile.gradient + first_output_of<T>(slice, panel) * p.tile_rows;
        if (!together) {
          multiply_panel_by_groups<T>(p, slice, count, from, weight + panel * outputs * kPanel<T>,
                                      tile.columns + panel * stride);
          continue;
        }
        const LeftOperand<T> gradient{from, 1, p.tile_rows, outputs, 0};
        multiply<T, T>(gradient, count, weight + panel * outputs * kPanel<T>, outputs, 1,
                       tile.columns + panel * stride, kPanel<T>, 0, false);
      }
    }
    run(p, slice, tile.rows, tile.table, tile.columns, tile.fields);
    if (fields) store_fields<T, Rank>(p, s, tile.rows, tile.fields);
    if (p.grad_weight && p.depthwise) {
      weight_gradient_depthwise<T>(p, slice, count, tile.gradient, padded, tile.columns,
                                   p.grad_weight + slice.weight);
    } else if (p.grad_weight) {
      zero_padding_columns(p, slice, tile.columns);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const T* const from = tile.gradient + first_output_of<T>(slice, panel) * p.tile_rows;
        const LeftOperand<T> gradient{from, p.tile_rows, 1, count, 0};
        multiply<T, T>(gradient, outputs, tile.columns + panel * stride, count, 1,
                       p.grad_weight + slice.weight + panel * outputs * kPanel<T>, kPanel<T>, 0, true);
      }
    }
  }
}

// Depthwise: weight [channel][tap] -> [tap][channel of the slice].
template <typename T, typename S>
void pack_depthwise(const DeformConvParams<T, S>& p, const S* weight, S* packed, int64_t s) {
  const ChannelSlice& slice = p.slices[s];
  for (int64_t tap = 0; tap < p.taps; ++tap)
    for (int64_t c = 0; c < slice.count; ++c)
      packed[slice.weight + tap * slice.count + c] = weight[(slice.first + c) * p.taps + tap];
}

// weight [out][channel of the group][tap] -> panels of outputs, each [tap · channel of the slice][kPanel],
// bfloat16 in pairs of rows
template <typename T, typename S>
void pack_forward(const DeformConvParams<T, S>& p, const S* weight, S* packed, int64_t s) {
  if (p.depthwise) return pack_depthwise(p, weight, packed, s);
  constexpr int64_t panel = kPanel<S>, pair = sizeof(S) == sizeof(T) ? 1 : 2, stretch = 64;
  S turned[stretch * panel];
  const int64_t outputs = p.out_channels / p.groups, group_channels = p.channels / p.groups;
  const ChannelSlice& slice = p.slices[s];
  const int64_t inner = slice.first - slice.group * group_channels;
  const int64_t channels = slice.count / slice.groups, depth = slice.depth / slice.groups;
  S* to = packed + slice.weight;
  for (int64_t group = slice.group; group < slice.group + slice.groups; ++group) {
    for (int64_t o0 = 0; o0 < outputs; o0 += panel, to += depth * panel) {
      const int64_t width = outputs - o0 < panel ? outputs - o0 : panel;
      if (width < panel || depth > p.taps * channels) std::memset(to, 0, depth * panel * sizeof(S));
      const S* from = weight + ((group * outputs + o0) * group_channels + inner) * p.taps;
      const int64_t from_stride = group_channels * p.taps, all = channels * p.taps;
      for (int64_t first = 0; first < all; first += stretch) {  // (channel, tap) pairs as they lie in weight
        const int64_t count = all - first < stretch ? all - first : stretch;
        transpose(from + first, from_stride, turned, panel, width, count);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t row = (first + i) % p.taps * channels + (first + i) / p.taps;
          S* row_to = to + row / pair * panel * pair + row % pair;
          for (int64_t o = 0; o < width; ++o) row_to[o * pair] = turned[i * panel + o];
        }
      }
    }
  }
}

// Calls run(place, packed) for every weight of a slice but a depthwise one's: where it lies in weight, and
// in panels of columns (tap · channel of the slice), each [panel_outputs][kPanel].
template <typename T, typename Run>
void each_packed_weight(const DeformConvParams<T>& p, const ChannelSlice& slice, Run run) {
  const int64_t outputs = p.out_channels / p.groups, group_channels = p.channels / p.groups;
  const int64_t inner = slice.first - slice.group * group_channels, channels = slice.count / slice.groups;
  for (int64_t o = 0; o < slice.outputs; ++o) {
    const int64_t group = o / outputs, row = o % slice.panel_outputs;
    const int64_t from = ((slice.group * outputs + o) * group_channels + inner) * p.taps;
    for (int64_t tap = 0; tap < p.taps; ++tap)
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t column = tap * slice.count + group * channels + c;
        run(from + c * p.taps + tap,
            slice.weight + (column / kPanel<T> * slice.panel_outputs + row) * kPanel<T> + column % kPanel<T>);
      }
  }
}

template <typename T>
void pack_backward(const DeformConvParams<T>& p, const T* weight, T* packed, int64_t s) {
  if (p.depthwise) return pack_depthwise(p, weight, packed, s);
  const ChannelSlice& slice = p.slices[s];
  std::memset(packed + slice.weight, 0, slice.depth * slice.panel_outputs * sizeof(T));
  each_packed_weight(p, slice, [&](int64_t from, int64_t to) { packed[to] = weight[from]; });
}

template <typename T>
void unpack_weight_gradient(const DeformConvParams<T>& p, const T* packed, T* grad_weight, int64_t s,
                            bool accumulate) {
  const ChannelSlice& slice = p.slices[s];
  const auto unpack = [&](int64_t to, int64_t from) {
    grad_weight[to] = accumulate ? grad_weight[to] + packed[from] : packed[from];
  };
  if (!p.depthwise) return each_packed_weight(p, slice, unpack);
  for (int64_t tap = 0; tap < p.taps; ++tap)
    for (int64_t c = 0; c < slice.count; ++c)
      unpack((slice.first + c) * p.taps + tap, slice.weight + tap * slice.count + c);
}

template <typename T>
void reduce_fields(const DeformConvParams<T>& p, int64_t image, int64_t field) {
  const int64_t points = p.taps * p.rank, fields = points + p.taps;
  const bool of_mask = field >= points;
  if (!(of_mask ? p.grad_mask : p.grad_offset)) return;
  const auto group_of = [&](const ChannelSlice& slice) {
    return of_mask ? slice.mask_group : slice.offset_group;
  };
  for (int64_t s = p.slice_begin; s < p.slice_end; ++s) {
    const ChannelSlice& slice = p.slices[s];
    if (!slice.shares_points) continue;
    bool first = true;
    for (int64_t before = 0; before < s; ++before) first &= group_of(p.slices[before]) != group_of(slice);
    const T* __restrict from =
        p.grad_fields + (((s - p.slice_begin) * fields + field) * p.images + image) * p.out_pixels;
    T* __restrict to =
        of_mask ? p.grad_mask +
                      ((image * p.mask_groups + slice.mask_group) * p.taps + field - points) * p.out_pixels
                : p.grad_offset +
                      ((image * p.offset_groups + slice.offset_group) * points + field) * p.out_pixels;
    for (int64_t i = 0; i < p.out_pixels; ++i) to[i] = first ? from[i] : to[i] + from[i];
  }
}

// rank, known at run time -> a template argument
template <typename Call>
DCNZOO_INLINE auto by_rank(int rank, Call call) {
  switch (rank) {
    case 1: return call(std::integral_constant<int, 1>{});
    case 2: return call(std::integral_constant<int, 2>{});
    default: return call(std::integral_constant<int, 3>{});
  }
}

// Bytes that a scratch takes: laid out from address 0.
template <typename Scratch, typename Problem>
int64_t bytes_of(const Problem& p) {
  Arena arena{nullptr};
  Scratch(arena, p);
  return arena.next - static_cast<char*>(nullptr);
}

template <typename T, typename S>
int64_t forward_scratch(const DeformConvParams<T, S>& p) {
  return by_rank(p.rank, [&](auto rank) { return bytes_of<ForwardScratch<T, S, rank()>>(p); });
}

template <typename T>
int64_t backward_scratch(const DeformConvParams<T>& p) {
  return by_rank(p.rank, [&](auto rank) { return bytes_of<BackwardScratch<T, rank()>>(p); });
}

template <typename T, typename S>
void forward(const DeformConvParams<T, S>& p, int64_t tile, char* scratch) {
  by_rank(p.rank, [&](auto rank) { forward_of<T, S, rank()>(p, tile, scratch); });
}

template <typename T>
void backward(const DeformConvParams<T>& p, int64_t slice, int64_t begin, int64_t end, char* scratch) {
  by_rank(p.rank, [&](auto rank) { backward_of<T, rank()>(p, slice, begin, end, scratch); });
}

template <typename T, typename S>
constexpr DeformConvForward<T, S> forward_kernels{kPanel<S>, forward_scratch<T, S>, pack_forward<T, S>,
                                                  forward<T, S>, transpose<S>};
template <typename T>
constexpr DeformConvBackward<T> backward_kernels{backward_scratch<T>, pack_backward<T>, backward<T>,
                                                 unpack_weight_gradient<T>, reduce_fields<T>};

constexpr DeformConvKernels kernels{
    {forward_kernels<float, float>, forward_kernels<double, double>},
#if defined(__AVX512BF16__)
    forward_kernels<float, BFloat16Bits>,
#else
    {},
#endif
    {backward_kernels<float>, backward_kernels<double>},
};

}  // namespace

const DeformConvKernels& deform_conv_kernels() { return kernels; }

}  // namespace DCNZOO_CPU_NAMESPACE
}  // namespace dcnzoo
