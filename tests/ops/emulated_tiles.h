// The tiles of AMX in C++, for tests on CPUs without it: DCNZOO_EMULATE_AMX=1 makes setup.py compile this class in place of
// ops/common/tiles.h's. It reads, writes and sums in the same order.
class CpuTiles {
 public:
  explicit CpuTiles(const TileConfig& config) : config_(config) {}

  template <int tile>
  void clear() {
    std::memset(data_[tile], 0, sizeof data_[tile]);
  }
  template <int tile, typename E>
  void load(const E* from, int64_t stride, bool = false) {
    clear<tile>();
    for (int64_t row = 0; row < config_.rows[tile]; ++row)
      std::memcpy(data_[tile][row], from + row * stride, config_.row_bytes[tile]);
  }
  template <int tile>
  void store(float* to, int64_t stride) const {
    for (int64_t row = 0; row < config_.rows[tile]; ++row)
      std::memcpy(to + row * stride, data_[tile][row], config_.row_bytes[tile]);
  }
  // The sums of the even and of the odd k of a tile are added at the end.
  template <int sums, int left, int right>
  void add_product() {
    for (int64_t row = 0; row < config_.rows[sums]; ++row) {
      EvenOdd sum{};
      for (int64_t pair = 0; pair < config_.rows[right]; ++pair) {
        uint16_t factors[2];
        std::memcpy(factors, data_[left][row] + pair * sizeof factors, sizeof factors);
        const auto by = load_lanes<EvenOdd>(reinterpret_cast<const uint16_t*>(data_[right][pair]));
        sum += {from_stored(factors[0]) * by.even, from_stored(factors[1]) * by.odd};
      }
      *reinterpret_cast<Vector<float>*>(data_[sums][row]) += sum.even + sum.odd;
    }
  }

 private:
  const TileConfig config_;
  alignas(kTileBytes) char data_[8][kTileRows][kTileBytes];
};
