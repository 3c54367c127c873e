// AMX: eight tiles of up to 16 rows of 64 bytes, and the same in plain C++.
#ifndef TANDEM_KERNELS_CPU_TILES_H_
#define TANDEM_KERNELS_CPU_TILES_H_

#include <cstdint>
#include <cstring>

#include "hwy/base.h"
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/flushed.h"

namespace tandem::kernels::cpu {

// What the processor may have besides tiles.
enum class TileType { kBF16, kInt8 };
// Whether it does, and the system allows it.
bool HasTiles(TileType type);

// Each wraps an instruction; tiles are named by their numbers.
struct Tiles {
  struct alignas(64) Config {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };

  // Tiles 0, 1 and 4 get `rows` rows, in [1, 16], the others 16.
  static HWY_INLINE void Configure(int64_t rows = 16) {
    Config config;
    for (const int tile : {0, 1, 4}) config.rows[tile] = static_cast<uint8_t>(rows);
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  static HWY_INLINE void Release() { asm volatile("tilerelease"); }
  template <int kTile>
  static HWY_INLINE void Load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  static HWY_INLINE void Store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  // sums[r][n] += sum over 64 k of x[r][k] * weights[k / 4][n][k % 4]; x signed, weights not.
  template <int kSums, int kX, int kWeights>
  static HWY_INLINE void DotBytes() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kX), "i"(kWeights));
  }
  // sums[r][n] += sum over 32 k of x[r][k] * weights[k / 2][n][k % 2]: the even k and the odd k
  // each by fused multiply-add, k ascending, from zero; the two are added, and then to the sum.
  template <int kSums, int kX, int kWeights>
  static HWY_INLINE void DotBF16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kX), "i"(kWeights));
  }
};

struct EmulatedTiles {
  struct Tile {
    uint8_t rows[16][64];
  };
  static inline thread_local Tile tiles[8];
  static inline thread_local int64_t num_rows[8];

  static void Configure(int64_t rows = 16) {
    std::memset(tiles, 0, sizeof(tiles));
    for (int tile = 0; tile < 8; ++tile) {
      num_rows[tile] = tile == 0 || tile == 1 || tile == 4 ? rows : 16;
    }
  }
  static void Release() { std::memset(tiles, 0xEE, sizeof(tiles)); }
  template <int kTile>
  static void Load(const void* from, int64_t stride) {
    for (int64_t r = 0; r < num_rows[kTile]; ++r) {
      std::memcpy(tiles[kTile].rows[r], static_cast<const char*>(from) + r * stride, 64);
    }
  }
  template <int kTile>
  static void Store(void* to, int64_t stride) {
    for (int64_t r = 0; r < num_rows[kTile]; ++r) {
      std::memcpy(static_cast<char*>(to) + r * stride, tiles[kTile].rows[r], 64);
    }
  }
  template <int kSums, int kX, int kWeights>
  static void DotBytes() {
    for (int64_t r = 0; r < num_rows[kSums]; ++r) {
      int32_t sums[16];
      std::memcpy(sums, tiles[kSums].rows[r], sizeof(sums));
      for (int k = 0; k < 64; ++k) {
        const auto x = static_cast<int8_t>(tiles[kX].rows[r][k]);
        for (int n = 0; n < 16; ++n) {
          sums[n] += x * tiles[kWeights].rows[k / 4][n * 4 + k % 4];
        }
      }
      std::memcpy(tiles[kSums].rows[r], sums, sizeof(sums));
    }
  }
  template <int kSums, int kX, int kWeights>
  static void DotBF16() {
    for (int64_t r = 0; r < num_rows[kSums]; ++r) {
      float sums[16];
      std::memcpy(sums, tiles[kSums].rows[r], sizeof(sums));
      for (int n = 0; n < 16; ++n) {
        float halves[2] = {0.0f, 0.0f};
        for (int k = 0; k < 32; ++k) {
          const float x = LoadElement(tiles[kX].rows[r], Dtype::kBF16, k);
          const float w = LoadElement(tiles[kWeights].rows[k / 2], Dtype::kBF16, 2 * n + k % 2);
          halves[k % 2] = FlushedFma(x, w, halves[k % 2]);
        }
        sums[n] = FlushedAdd(sums[n], FlushedAdd(halves[0], halves[1]));
      }
      std::memcpy(tiles[kSums].rows[r], sums, sizeof(sums));
    }
  }
};

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_TILES_H_
