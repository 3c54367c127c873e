#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tools/ceilings/ceilings.h"
#include "tools/ceilings/trials.h"

namespace tandem {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kBufferBytes = size_t{1} << 30;
// A trial reads one window, the next one another: a line comes again after the whole buffer.
constexpr int kWindows = 4;
constexpr size_t kWindowBytes = kBufferBytes / kWindows;
constexpr int kTrials = 3 * kWindows;

// Memory of its own, each page touched; begins at a huge page's border.
class Buffer {
 public:
  explicit Buffer(bool huge_pages) {
    void* mapped = mmap(nullptr, kBufferBytes + kHugePage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return;
    mapped_ = static_cast<std::byte*>(mapped);
    const size_t past = reinterpret_cast<uintptr_t>(mapped_) % kHugePage;
    begin_ = mapped_ + (past == 0 ? 0 : kHugePage - past);
    const int advice = huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
    // A kernel without huge pages knows neither advice.
    advice_taken_ = madvise(begin_, kBufferBytes, advice) == 0 || !huge_pages;
    std::memset(begin_, 1, kBufferBytes);
  }
  ~Buffer() {
    if (mapped_ != nullptr) munmap(mapped_, kBufferBytes + kHugePage);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  bool usable() const { return mapped_ != nullptr && advice_taken_; }
  const std::byte* begin() const { return begin_; }

 private:
  std::byte* mapped_ = nullptr;
  std::byte* begin_ = nullptr;
  bool advice_taken_ = false;
};

// Reads kStreams consecutive pieces of `lines` cache lines each, side by side. An empty statement
// uses what was read, so that nothing is left out.
using ReadFn = void (*)(const std::byte* data, size_t lines, size_t prefetch_bytes);

// kPrefetches and not a distance of 0: even a prefetch of what is being loaded costs a slot.
template <int kStreams, bool kPrefetches>
__attribute__((target("avx512f"))) void ReadAvx512(const std::byte* data, size_t lines,
                                                   size_t prefetch_bytes) {
  __m512i sums[kStreams];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (size_t line = 0; line < lines; ++line) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) {
      const std::byte* at = data + (s * lines + line) * kLine;
      if (kPrefetches)
        _mm_prefetch(reinterpret_cast<const char*>(at) + prefetch_bytes, _MM_HINT_T0);
      sums[s] = _mm512_xor_si512(sums[s], _mm512_load_si512(at));
    }
  }
  for (const __m512i& sum : sums) asm volatile("" : : "v"(sum));
}

template <int kStreams, bool kPrefetches>
__attribute__((target("avx2"))) void ReadAvx2(const std::byte* data, size_t lines,
                                              size_t prefetch_bytes) {
  __m256i sums[kStreams];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (size_t line = 0; line < lines; ++line) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) {
      const std::byte* at = data + (s * lines + line) * kLine;
      if (kPrefetches)
        _mm_prefetch(reinterpret_cast<const char*>(at) + prefetch_bytes, _MM_HINT_T0);
      const auto* half = reinterpret_cast<const __m256i*>(at);
      sums[s] = _mm256_xor_si256(sums[s], _mm256_load_si256(half));
      sums[s] = _mm256_xor_si256(sums[s], _mm256_load_si256(half + 1));
    }
  }
  for (const __m256i& sum : sums) asm volatile("" : : "v"(sum));
}

template <int kStreams>
ReadFn ChooseRead(bool prefetches) {
  if (__builtin_cpu_supports("avx512f")) {
    return prefetches ? ReadAvx512<kStreams, true> : ReadAvx512<kStreams, false>;
  }
  return prefetches ? ReadAvx2<kStreams, true> : ReadAvx2<kStreams, false>;
}

ReadFn ChooseRead(const ReadPattern& pattern) {
  const bool prefetches = pattern.prefetch_bytes > 0;
  switch (pattern.streams) {
    case 1:
      return ChooseRead<1>(prefetches);
    case 2:
      return ChooseRead<2>(prefetches);
    case 4:
      return ChooseRead<4>(prefetches);
    default:
      return ChooseRead<8>(prefetches);
  }
}

double Measure(const Buffer& buffer, const ReadPattern& pattern, int num_threads) {
  const ReadFn read = ChooseRead(pattern);
  const size_t lines = kWindowBytes / kLine / num_threads / pattern.streams;
  const size_t bytes_of_thread = lines * pattern.streams * kLine;
  const double seconds = ShortestTrial(num_threads, kTrials, [&](int thread, int trial) {
    const std::byte* window = buffer.begin() + trial % kWindows * kWindowBytes;
    read(window + thread * bytes_of_thread, lines, pattern.prefetch_bytes);
  });
  return static_cast<double>(bytes_of_thread * num_threads) / seconds;
}

}  // namespace

std::string ReadPattern::Name() const {
  std::string name = std::to_string(streams) + (streams == 1 ? " stream" : " streams");
  name += prefetch_bytes == 0 ? ", no prefetch"
                              : ", prefetch " + std::to_string(prefetch_bytes) + " bytes ahead";
  return name + (huge_pages ? ", huge pages" : ", small pages");
}

std::vector<ReadRate> MeasureReadRates(int num_threads) {
  std::vector<ReadRate> rates;
  for (const bool huge_pages : {false, true}) {
    const Buffer buffer(huge_pages);
    if (!buffer.usable()) break;
    for (const int streams : {1, 2, 4, 8}) {
      for (const int prefetch_bytes : {0, 512, 1024, 2048, 4096}) {
        const ReadPattern pattern = {streams, prefetch_bytes, huge_pages};
        rates.push_back({pattern, Measure(buffer, pattern, num_threads)});
      }
    }
  }
  std::sort(rates.begin(), rates.end(),
            [](const ReadRate& a, const ReadRate& b) { return a.bytes_per_s > b.bytes_per_s; });
  return rates;
}

}  // namespace tandem
