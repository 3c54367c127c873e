#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "tools/ceilings/ceilings.h"
#include "tools/ceilings/trials.h"

// A value that the compiler must take for another one from here on, in the same register: without
// it equal chains become one, and what does not change is computed once.
#define TANDEM_RENEW(value) asm volatile("" : "+v"(value))

namespace tandem {
namespace {

// Runs `steps` rounds; returns the operations that were done. The chains of a round do not depend
// on each other: more of them than latency times throughput of any processor that has the
// instruction.
using PeakFn = int64_t (*)(int64_t steps);

constexpr int kChains = 12;

__attribute__((target("avx2,fma"))) int64_t F32Avx2(int64_t steps) {
  const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1.0f);
  __m256 sums[kChains] = {};
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (__m256& sum : sums) {
      sum = _mm256_fmadd_ps(sum, a, b);
      TANDEM_RENEW(sum);
    }
  }
  return steps * kChains * 8 * 2;
}

__attribute__((target("avx512f"))) int64_t F32Avx512(int64_t steps) {
  const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(1.0f);
  __m512 sums[kChains] = {};
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (__m512& sum : sums) {
      sum = _mm512_fmadd_ps(sum, a, b);
      TANDEM_RENEW(sum);
    }
  }
  return steps * kChains * 16 * 2;
}

__attribute__((target("avx512f,avx512bf16"))) int64_t Bf16Avx512(int64_t steps) {
  const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.5f));
  __m512 sums[kChains] = {};
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (__m512& sum : sums) {
      sum = _mm512_dpbf16_ps(sum, a, a);
      TANDEM_RENEW(sum);
    }
  }
  return steps * kChains * 32 * 2;
}

__attribute__((target("avx512f,avx512vnni"))) int64_t Int8Vnni(int64_t steps) {
  const __m512i a = _mm512_set1_epi8(3);
  __m512i sums[kChains] = {};
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (__m512i& sum : sums) {
      sum = _mm512_dpbusd_epi32(sum, a, a);
      TANDEM_RENEW(sum);
    }
  }
  return steps * kChains * 64 * 2;
}

__attribute__((target("avx2"))) int64_t Int8Avx2(int64_t steps) {
  constexpr int kSums = 8;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i a = _mm256_set1_epi8(3);
  __m256i sums[kSums] = {};
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 8
    for (__m256i& sum : sums) {
      TANDEM_RENEW(a);
      const __m256i pairs = _mm256_maddubs_epi16(a, a);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
      TANDEM_RENEW(sum);
    }
  }
  return steps * kSums * 32 * 2;
}

// Nibbles that lie in bytes already: eight products of at most 15 * 127 fit into 16 bits.
__attribute__((target("avx2"))) int64_t Int4Avx2(int64_t steps) {
  constexpr int kSums = 4, kVectors = 4;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i a = _mm256_set1_epi8(3);
  __m256i sums[kSums] = {};
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 4
    for (__m256i& sum : sums) {
      __m256i eights = _mm256_maddubs_epi16(a, a);
#pragma GCC unroll 3
      for (int v = 1; v < kVectors; ++v) {
        TANDEM_RENEW(a);
        eights = _mm256_add_epi16(eights, _mm256_maddubs_epi16(a, a));
      }
      TANDEM_RENEW(a);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(eights, ones));
      TANDEM_RENEW(sum);
    }
  }
  return steps * kSums * kVectors * 32 * 2;
}

// The operand of ldtilecfg.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};  // of each tile
  uint8_t rows[16] = {};
};

// All eight tiles at their largest, 16 rows of 64 bytes: 0 to 3 zero, 4 to 7 of some values.
__attribute__((target("amx-tile"))) void ConfigureTiles() {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  alignas(64) uint8_t values[16 * 64];
  std::fill(std::begin(values), std::end(values), uint8_t{0x3c});  // bf16: 0.0115
  // GCC 12 does not know how much of their memory the instructions below read.
  asm volatile("" : : "r"(&config), "r"(values) : "memory");
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, values, 64);
  _tile_loadd(5, values, 64);
  _tile_loadd(6, values, 64);
  _tile_loadd(7, values, 64);
}

__attribute__((target("amx-tile,amx-bf16"))) int64_t Bf16Amx(int64_t steps) {
  ConfigureTiles();
  for (int64_t i = 0; i < steps; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return steps * 4 * 16 * 16 * 32 * 2;
}

__attribute__((target("amx-tile,amx-int8"))) int64_t Int8Amx(int64_t steps) {
  ConfigureTiles();
  for (int64_t i = 0; i < steps; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
  return steps * 4 * 16 * 16 * 64 * 2;
}

// Bits of cpuid leaf 7, register edx.
constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;

// Whether the processor has tiles with `feature`, and the system lets this process use them, which
// it has to be asked for once.
bool HasAmx(unsigned feature) {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & kAmxTile) == 0 || (d & feature) == 0) return false;
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return permitted;
}

double Measure(PeakFn run, int num_threads) {
  // Shorter than a time slice, so that some trials are not interrupted.
  constexpr double kTrialSeconds = 2e-3;
  constexpr int kTrials = 200;
  int64_t steps = 1000, ops = 0;
  const auto time = [&](int trials) {
    return ShortestTrial(num_threads, trials, [&](int thread, int) {
      const int64_t done = run(steps);
      if (thread == 0) ops = done;
    });
  };
  double seconds = time(5);
  steps = std::max<int64_t>(1, static_cast<int64_t>(kTrialSeconds / seconds * 1000));
  seconds = time(kTrials);
  return static_cast<double>(ops) * num_threads / seconds;
}

}  // namespace

std::vector<PeakRate> MeasurePeakRates(int num_threads) {
  std::vector<PeakRate> rates;
  const auto measure = [&](bool present, const char* name, const char* sequence, bool is_float,
                           PeakFn run) {
    if (present) rates.push_back({name, sequence, is_float, Measure(run, num_threads)});
  };
  const bool has_avx512 = __builtin_cpu_supports("avx512f") != 0;
  measure(true, "f32 AVX2", "vfmadd ymm", true, F32Avx2);
  measure(has_avx512, "f32 AVX-512", "vfmadd zmm", true, F32Avx512);
  measure(has_avx512 && __builtin_cpu_supports("avx512bf16"), "bf16 AVX-512", "vdpbf16ps zmm", true,
          Bf16Avx512);
  measure(HasAmx(kAmxBf16), "bf16 AMX", "tdpbf16ps", true, Bf16Amx);
  measure(true, "int8 AVX2", "vpmaddubsw, vpmaddwd, vpaddd ymm", false, Int8Avx2);
  measure(has_avx512 && __builtin_cpu_supports("avx512vnni"), "int8 AVX-512", "vpdpbusd zmm", false,
          Int8Vnni);
  measure(HasAmx(kAmxInt8), "int8 AMX", "tdpbssd", false, Int8Amx);
  measure(true, "int4 AVX2", "4 x vpmaddubsw, vpaddw; vpmaddwd, vpaddd ymm", false, Int4Avx2);
  return rates;
}

double FloatPeakRate(const std::vector<PeakRate>& peaks) {
  double best = 0;
  for (const PeakRate& peak : peaks) {
    if (peak.is_float) best = std::max(best, peak.ops_per_s);
  }
  return best;
}

}  // namespace tandem
