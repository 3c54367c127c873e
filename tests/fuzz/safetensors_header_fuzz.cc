// The header of a checkpoint's file: the number of bytes of data, then JSON.

#include "common/checkpoint/safetensors.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem;
  fuzz::Input input(data, size);
  const uint64_t data_bytes = input.Number();
  const auto entries = ParseSafetensorsHeader(input.Rest(), data_bytes);
  if (!entries.ok()) return 0;
  uint64_t covered = 0;
  for (const auto& [name, entry] : *entries) {
    TANDEM_CHECK(entry.begin <= entry.end && entry.end <= data_bytes);
    covered += entry.end - entry.begin;
    for (const int64_t n : entry.shape) TANDEM_CHECK(n >= 0);
  }
  TANDEM_CHECK(covered == data_bytes);
  return 0;
}
